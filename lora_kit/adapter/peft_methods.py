"""From the recipe's `adapter` section to PEFT's configuration of the method, validated by it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from lora_kit.adapter.unfrozen import copies_of, head_alone
from lora_kit.backbone.encoder_decoder import is_divided
from lora_kit.backbone.heads import task_type_of
from lora_kit.recipe.adapter import VIRTUAL, VIRTUAL_TOKENS, AdapterSpec
from lora_kit.recipe.initialisations import OPTION, as_attached, given_sections, initialisation_of
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftConfig

# What the recipe says in the same words for all methods, by PEFT's names.
RANKS = ("r", "subspace_rank", "effective_rank")
ALPHAS = ("lora_alpha", "alpha")
DROPOUTS = ("lora_dropout", "module_dropout")
# Made for other modules than the linear ones: PEFT knows which, where it knows the architecture.
OWN_TARGETS = ("ia3", "ln_tuning", "trainable_tokens", "beft")
# Of this run or of another field, not of the method.
NOT_OPTIONS = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "target_modules"),
)
# Of virtual tokens, what the backbone says; a copy of one of its modules could not be switched off.
NOT_OF_TOKENS = (
    *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
    *("modules_to_save", "tokenizer_name_or_path", "tokenizer_kwargs"),
)
# PEFT's own beginning is noise far larger than what a backbone makes of words. On SmolLM2-135M (80
# docstrings, 20 steps at a rate of 1e-2) prefix tuning from it went from 7.10 to 4.69 nats per
# held-out token, from zero 4.37 to 3.80; prompt tuning 4.30 to 4.09, from words 4.30 to 3.74.
BEGINNINGS = {
    "prefix_tuning": {"init_weights": "zero"},
    "prompt_tuning": {"prompt_tuning_init": "SAMPLE_VOCAB"},
}
# More than any training has.
UNKNOWN_STEPS = 10**9
# PEFT's word of an option that it takes with a list of modules alone.
_OF_NAMED_MODULES = re.compile(r"`(\w+)` cannot be used when `target_modules` is a str")
# What PEFT does to the backbone itself.
CHANGES_THE_BASE = {
    "bias": "trains biases of the backbone in their place",
    "layer_replication": "stacks the backbone's layers anew",
}


def configuration(
    spec: AdapterSpec, model: torch.nn.Module, beside: Sequence[str] = ()
) -> PeftConfig:
    """PEFT's configuration of a method.

    Args:
        spec: the recipe's.
        model: that it is for; where that is a classifier, its head is trained and saved as well.
        beside: modules that are trained and saved whole besides the head.

    Raises:
        AdapterError: naming the field that the method does not have, or the value that it refuses.
    """
    config = as_asked(spec, model)
    start = initialisation_of(spec)
    if start is not None:
        config = as_attached(cast("LoraConfig", config), start)
    if beside and hasattr(config, "modules_to_save"):
        config.modules_to_save = [*(config.modules_to_save or []), *beside]
    return config


def as_asked(spec: AdapterSpec, model: torch.nn.Module) -> PeftConfig:
    """PEFT's configuration as the recipe has it, before an initialisation makes another of it.

    Raises:
        AdapterError: as `configuration`.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if spec.trains_weights:
        _require_nothing_else(spec)
        return copies_of(model, spec.method)
    if spec.method == "head":
        _require_nothing_else(spec)
        return head_alone()
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(spec.method.upper())]
    fields = {field.name for field in dataclasses.fields(kind)} - set(NOT_OPTIONS)
    if spec.method in VIRTUAL:
        fields -= set(NOT_OF_TOKENS)
    named = _in_peft_names(spec, fields)
    options = _options(spec, fields - set(named), kind)
    if spec.method in VIRTUAL:
        options = _of_tokens(spec.method, options, model)
    targets = None if _has_own_targets(spec) else spec.target_modules
    try:
        return kind(
            task_type=task_type_of(model),
            **({"target_modules": targets} if targets is not None else {}),
            **named,
            **(given_sections(initialisation_of(spec)) | options),
        )
    except (ValueError, TypeError, ImportError) as error:
        if found := _OF_NAMED_MODULES.search(str(error)):
            raise AdapterError(
                f"adapter.options.{found[1]}: goes by modules that are named, and adapter.target_modules "
                f"is {spec.target_modules}; name them there, such as [q_proj, v_proj]"
            ) from error
        raise AdapterError(f"adapter: {spec.method}: {error}") from error


def _require_nothing_else(spec: AdapterSpec) -> None:
    """Raises AdapterError for a field of `adapter` that says nothing where weights are trained."""
    for field in ("rank", "alpha", "dropout", "options"):
        if getattr(spec, field):
            raise AdapterError(f"adapter.{field}: {spec.method} has none; leave it out")
    if spec.target_modules != "all-linear":
        raise AdapterError(
            f"adapter.target_modules: {spec.method} says what is trained; leave it out"
        )


def _has_own_targets(spec: AdapterSpec) -> bool:
    return spec.target_modules == "all-linear" and spec.method in (*OWN_TARGETS, *VIRTUAL)


def _in_peft_names(spec: AdapterSpec, fields: set[str]) -> dict[str, Any]:
    own = {"alpha": f"{spec.method}_alpha", "dropout": f"{spec.method}_dropout"}
    several = {
        "rank": (RANKS, spec.rank),
        "alpha": ((own["alpha"], *ALPHAS), spec.alpha),
        "dropout": ((own["dropout"], *DROPOUTS), spec.dropout or None),
    }
    found: dict[str, Any] = {}
    for field, (names, value) in several.items():
        if value is None:
            continue
        name = next((name for name in names if name in fields), None)
        if name is None:
            raise AdapterError(f"adapter.{field}: {spec.method} has none; leave it out")
        found[name] = value
    if spec.method == "adalora":
        # How long the training is, it is told when that is known.
        found |= {"total_step": UNKNOWN_STEPS}
        if spec.rank:
            # It begins with more than it ends with (Zhang et al. 2023, arXiv:2303.10512, 4.1).
            del found["r"]
            found |= {"target_r": spec.rank, "init_r": round(1.5 * spec.rank)}
    return found


def _options(spec: AdapterSpec, fields: set[str], kind: type) -> dict[str, Any]:
    """The recipe's options, each converted to what PEFT's class says that it is."""
    for name, why in CHANGES_THE_BASE.items():
        if spec.options.get(name) not in (None, False, "none"):
            raise AdapterError(
                f"adapter.options.{name}: {why}, so that the base is not there when the adapter is "
                "switched off; leave it out"
            )
    hints, found = _hints(kind), {}
    for name, value in spec.options.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            meant = f" Did you mean `{close[0]}`?" if close else ""
            raise AdapterError(
                f"adapter.options.{name}: not an option of {spec.method} in PEFT, or a field of "
                f"`adapter` itself.{meant} Possible: {', '.join(sorted(fields))}"
            )
        # Of PiSSA's forms PEFT's class names one.
        is_start = name == OPTION and initialisation_of(spec) is not None
        found[name] = value if is_start else _converted(name, value, hints)
    if found.get("init_r", math.inf) <= found.get("target_r", spec.rank or 8):
        raise AdapterError("adapter.options.init_r: adalora begins with more than `rank`; raise it")
    return found


def _of_tokens(method: str, options: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """The options of virtual tokens, with their number and where they begin if that is not said."""
    if is_divided(model):
        raise AdapterError(
            f"adapter.method: {method}: its tokens stand before one text, and this backbone has an "
            "encoder and a decoder; use lora, or another method that changes layers"
        )
    found = {"num_virtual_tokens": VIRTUAL_TOKENS, **BEGINNINGS.get(method, {}), **options}
    count = found["num_virtual_tokens"]
    if count < 1:
        raise AdapterError(f"adapter.options.num_virtual_tokens: {count}: 1 or more")
    text = found.get("prompt_tuning_init_text")
    if str(found.get("prompt_tuning_init", "")).rpartition(".")[2] != "TEXT":
        if text is not None:
            raise AdapterError(
                "adapter.options.prompt_tuning_init_text: is read with prompt_tuning_init: TEXT "
                "alone; set it, or leave the text out"
            )
        return found
    if not text:
        raise AdapterError(
            "adapter.options.prompt_tuning_init_text: what is the text that prompt_tuning_init: "
            "TEXT begins with?"
        )
    directory = getattr(model, "name_or_path", "")
    length = len(_tokenizer(directory)(text)["input_ids"])
    if length > count:
        raise AdapterError(
            f"adapter.options.prompt_tuning_init_text: {length} tokens, of which PEFT would take "
            f"the first {count}; shorten it, or set num_virtual_tokens: {length}"
        )
    return found | {"tokenizer_name_or_path": directory}


def _tokenizer(directory: str) -> Any:
    """The backbone's, which stands beside its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _hints(kind: type) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:
        return {}  # a name that PEFT imports for type checkers alone


def _converted(name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """PEFT's classes take a value of any type, and fail much later; YAML's `1e-2` is a text."""
    _require_known_keys(name, value, hints.get(name))
    try:
        return TypeAdapter(hints.get(name, Any)).validate_python(value)
    except PydanticUserError:
        return value
    except ValidationError as error:
        raise AdapterError(
            f"adapter.options.{name}: {error.errors()[0]['msg']}, found {value!r}"
        ) from error


def _require_known_keys(name: str, value: Any, hint: Any) -> None:
    """Raises AdapterError for a key of a section that PEFT's class has not; pydantic drops it."""
    sections = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
    if not isinstance(value, dict) or not sections:
        return
    known = {field.name for section in sections for field in dataclasses.fields(section)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise AdapterError(
            f"adapter.options.{name}.{unknown[0]}: unknown; possible: {', '.join(sorted(known))}"
        )
