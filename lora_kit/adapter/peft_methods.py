"""Conversion of the recipe's `adapter` section to PEFT's configuration of the method."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from lora_kit.adapter.unfrozen import head_only_configuration, unfrozen_configuration
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.heads import HEAD_NAMES, POOLER, is_base_model, peft_task_type
from lora_kit.backbone.open_files import open_tokenizer
from lora_kit.recipe.adapter import VIRTUAL, VIRTUAL_TOKENS, AdapterSpec
from lora_kit.recipe.initialisations import OPTION, SECTIONS, SUBTRACTED, initialisation_of
from lora_kit.runtime.errors import AdapterError, did_you_mean

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftConfig

# PEFT's name of an adapter that is attached without one.
DEFAULT_ADAPTER = "default"
# PEFT's names of the fields `rank`, `alpha` and `dropout`, which differ between methods.
RANK_NAMES = ("r", "subspace_rank", "effective_rank")
ALPHA_NAMES = ("lora_alpha", "alpha")
DROPOUT_NAMES = ("lora_dropout", "module_dropout")
# Methods for modules other than linear ones; PEFT's defaults for the architecture apply.
METHODS_WITH_OWN_TARGETS = ("ia3", "ln_tuning", "trainable_tokens", "beft")
# Configuration fields that belong to the run or to another field of the recipe.
NOT_OPTIONS = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "target_modules"),
)
# Configuration fields of prompt methods that follow from the backbone; a copy of one of its modules
# could not be disabled with the adapter.
NOT_PROMPT_OPTIONS = (
    *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
    *("modules_to_save", "tokenizer_name_or_path", "tokenizer_kwargs"),
)
# PEFT's default initialisation is noise far larger than a backbone's embeddings. On SmolLM2-135M
# (80 docstrings, 20 steps at a learning rate of 1e-2), prefix tuning reduced the held-out loss from
# 7.10 to 4.69 nats per token with the default, from 4.37 to 3.80 with zeros; prompt tuning from
# 4.30 to 4.09 with the default, from 4.30 to 3.74 with embeddings of the vocabulary.
DEFAULT_INITIALISATIONS = {
    "prefix_tuning": {"init_weights": "zero"},
    "prompt_tuning": {"prompt_tuning_init": "SAMPLE_VOCAB"},
}
# Placeholder above any number of training steps.
UNKNOWN_STEPS = 10**9
# PEFT's message for an option that requires a list of target modules.
_NEEDS_MODULE_LIST = re.compile(r"`(\w+)` cannot be used when `target_modules` is a str")
# Options with which PEFT changes the backbone itself.
BASE_CHANGING_OPTIONS = {
    "bias": "trains biases of the backbone in place",
    "layer_replication": "replicates layers of the backbone",
}


def peft_configuration(
    spec: AdapterSpec, model: torch.nn.Module, extra_modules: Sequence[str] = ()
) -> PeftConfig:
    """Return PEFT's configuration of the adapter to attach.

    Args:
        spec: adapter section of the recipe.
        model: backbone; a classifier's head is trained and saved as well.
        extra_modules: modules trained and saved in full, besides the head.

    Raises:
        AdapterError: naming the field that the method does not have, or the value that it refuses.
    """
    config = requested_configuration(spec, model)
    initialisation = initialisation_of(spec)
    if initialisation is not None:
        config = _as_attached(cast("LoraConfig", config), initialisation)
    # Above the hidden states that an embedding is pooled from, so that nothing would be learned.
    is_left_out = is_base_model(model) and hasattr(model, POOLER)
    if is_left_out and getattr(config, "exclude_modules", "") is None:
        config.exclude_modules = [f"{POOLER}.dense"]
    if extra_modules and hasattr(config, "modules_to_save"):
        config.modules_to_save = [*(config.modules_to_save or []), *extra_modules]
    return config


def _as_attached(requested: LoraConfig, kind: str) -> LoraConfig:
    """Return the configuration of the adapter that is attached, trained and saved.

    Args:
        requested: PEFT's configuration of the requested initialisation.
        kind: initialisation, as returned by `initialisation_of`.
    """
    plain: dict[str, Any] = {OPTION: True, **dict.fromkeys(SECTIONS), "loftq_config": {}}
    if kind == "eva":
        # EVA chooses its ranks from data, by this configuration; see `initial_factors`.
        return requested
    if kind not in SUBTRACTED:
        return dataclasses.replace(requested, **plain)
    # The scale of each half has to be that of the original rank.
    alpha = requested.lora_alpha * (math.sqrt(2) if requested.use_rslora else 2)
    return dataclasses.replace(requested, **plain, r=2 * requested.r, lora_alpha=alpha)


def requested_configuration(spec: AdapterSpec, model: torch.nn.Module) -> PeftConfig:
    """Return PEFT's configuration as requested, before an initialisation changes it.

    Raises:
        AdapterError: naming the field that the method does not have, or the value that it refuses.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if spec.trains_weights:
        _require_default_fields(spec)
        return unfrozen_configuration(model, spec.method)
    if spec.method == "head":
        _require_default_fields(spec)
        return head_only_configuration(model)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(spec.method.upper())]
    fields = {field.name for field in dataclasses.fields(kind)} - set(NOT_OPTIONS)
    if spec.method in VIRTUAL:
        fields -= set(NOT_PROMPT_OPTIONS)
    named = _peft_fields(spec, fields)
    options = _convert_options(spec, fields - set(named), kind)
    if spec.method in VIRTUAL:
        options = _prompt_options(spec.method, options, model)
    has_own_targets = spec.method in (*METHODS_WITH_OWN_TARGETS, *VIRTUAL)
    if spec.target_modules != "all-linear" or not has_own_targets:
        named["target_modules"] = spec.target_modules
    if "exclude_modules" in fields:
        options = without_head_of_words(model) | options
    try:
        return kind(
            task_type=peft_task_type(model),
            **named,
            **(_required_sections(initialisation_of(spec)) | options),
        )
    except (ValueError, TypeError, ImportError) as error:
        if match := _NEEDS_MODULE_LIST.search(str(error)):
            raise AdapterError(
                f"adapter.options.{match[1]}: needs a list of modules in adapter.target_modules "
                f"(got {spec.target_modules}). Fix: name them there, such as [q_proj, v_proj]"
            ) from error
        raise AdapterError(
            f"adapter: {spec.method}: PEFT refuses the configuration ({error}). Fix: change "
            "adapter.options"
        ) from error


def without_head_of_words(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return the option that keeps the head of a token classifier from being a target.

    PEFT 0.21 leaves only the head of a sequence classifier out of `all-linear`, and cannot save a
    head that has an adapter.
    """
    if peft_task_type(model) != "TOKEN_CLS":
        return {}
    return {"exclude_modules": [name for name in HEAD_NAMES if hasattr(model, name)]}


def _required_sections(kind: str | None) -> dict[str, Any]:
    """Return the configuration that PEFT requires for an initialisation, with its defaults."""
    required: dict[str, dict[str, Any]] = {
        "loftq": {"loftq_bits": 4},
        "eva": {"rho": 2.0},
        "corda": {"corda_method": "ipm"},
        "lora_ga": {"scale": "stable"},
    }
    return {f"{kind}_config": required[kind]} if kind in required else {}


def _require_default_fields(spec: AdapterSpec) -> None:
    """Raise AdapterError for a field of `adapter` that has no effect when weights are trained."""
    for field in ("rank", "alpha", "dropout", "options"):
        if getattr(spec, field):
            raise AdapterError(f"adapter.{field}: {spec.method} has none. Fix: leave it out")
    if spec.target_modules != "all-linear":
        raise AdapterError(
            f"adapter.target_modules: {spec.method} selects the trained modules itself. Fix: leave "
            "it out"
        )


def _peft_fields(spec: AdapterSpec, fields: set[str]) -> dict[str, Any]:
    """Return rank, alpha and dropout under PEFT's names for the method."""
    sources = {
        "rank": (RANK_NAMES, spec.rank),
        "alpha": ((f"{spec.method}_alpha", *ALPHA_NAMES), spec.alpha),
        "dropout": ((f"{spec.method}_dropout", *DROPOUT_NAMES), spec.dropout or None),
    }
    values: dict[str, Any] = {}
    for field, (names, value) in sources.items():
        if value is None:
            continue
        name = next((name for name in names if name in fields), None)
        if name is None:
            raise AdapterError(f"adapter.{field}: {spec.method} has none. Fix: leave it out")
        values[name] = value
    if spec.method == "adalora":
        # Training sets the number of steps once it is known.
        values |= {"total_step": UNKNOWN_STEPS}
        if spec.rank:
            # The initial rank exceeds the target (Zhang et al. 2023, arXiv:2303.10512, 4.1).
            del values["r"]
            values |= {"target_r": spec.rank, "init_r": round(1.5 * spec.rank)}
    return values


def _convert_options(spec: AdapterSpec, fields: set[str], kind: type) -> dict[str, Any]:
    """Return the recipe's options, each converted to the type that PEFT's class declares."""
    for name, effect in BASE_CHANGING_OPTIONS.items():
        if spec.options.get(name) not in (None, False, "none"):
            raise AdapterError(
                f"adapter.options.{name}: {effect}, so disabling the adapter does not restore the "
                f"base (got {spec.options[name]}). Fix: leave it out"
            )
    try:
        hints: Mapping[str, Any] = typing.get_type_hints(kind)
    except NameError:
        hints = {}  # PEFT imports some names for type checkers only
    values: dict[str, Any] = {}
    for name, value in spec.options.items():
        if name not in fields:
            raise AdapterError(
                f"adapter.options.{name}: not an option of {spec.method} in PEFT, or a field of "
                f"`adapter` itself.{did_you_mean(name, fields)} Fix: use one of "
                f"{', '.join(sorted(fields))}"
            )
        # PEFT's class declares only one of PiSSA's names.
        is_initialisation = name == OPTION and initialisation_of(spec) is not None
        values[name] = value if is_initialisation else _converted(name, value, hints)
    if values.get("init_r", math.inf) <= values.get("target_r", spec.rank or 8):
        raise AdapterError(
            f"adapter.options.init_r: adalora's initial rank must exceed `rank` (got "
            f"{values['init_r']}). Fix: raise init_r"
        )
    return values


def _prompt_options(method: str, options: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """Return a prompt method's options, with defaults for number and initialisation of tokens."""
    if is_encoder_decoder(model):
        raise AdapterError(
            f"adapter.method: {method} is not supported for encoder-decoders. Fix: use lora, or "
            "another method that changes layers"
        )
    values: dict[str, Any] = {"num_virtual_tokens": VIRTUAL_TOKENS}
    values |= DEFAULT_INITIALISATIONS.get(method, {}) | options
    field = "adapter.options.prompt_tuning_init_text"
    text = values.get("prompt_tuning_init_text")
    if str(values.get("prompt_tuning_init", "")).rpartition(".")[2] != "TEXT":
        if text is not None:
            raise AdapterError(
                f"{field}: has an effect only with prompt_tuning_init: TEXT. Fix: set it, or leave "
                "the text out"
            )
        return values
    if not text:
        raise AdapterError(
            f"{field}: required by prompt_tuning_init: TEXT (got {text!r}). Fix: set the text that "
            "the virtual tokens are initialised from"
        )
    directory = getattr(model, "name_or_path", "")
    tokenizer = open_tokenizer(Path(directory), AdapterError)
    length, count = len(tokenizer(text)["input_ids"]), values["num_virtual_tokens"]
    if length > count:
        raise AdapterError(
            f"{field}: PEFT would use only the first {count} tokens (got {length} tokens). Fix: "
            f"shorten the text, or set num_virtual_tokens: {length}"
        )
    return values | {"tokenizer_name_or_path": directory}


def _converted(name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """Convert a value to its declared type; YAML reads `1e-2` as a string, and PEFT takes it."""
    _require_known_keys(name, value, hints.get(name))
    try:
        return TypeAdapter(hints.get(name, Any)).validate_python(value)
    except PydanticUserError:
        return value
    except ValidationError as error:
        raise AdapterError(
            f"adapter.options.{name}: {error.errors()[0]['msg']} (got {value!r}). Fix: correct the "
            "value"
        ) from error


def _require_known_keys(name: str, value: Any, hint: Any) -> None:
    """Raise AdapterError for a key that PEFT's class lacks, which pydantic would drop."""
    sections = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
    if not isinstance(value, dict) or not sections:
        return
    known = {field.name for section in sections for field in dataclasses.fields(section)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise AdapterError(
            f"adapter.options.{name}.{unknown[0]}: unknown key. Fix: use one of "
            f"{', '.join(sorted(known))}"
        )
