"""From the recipe's `adapter` section to PEFT's configuration of the method, validated by it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from lora_kit.adapter_spec import AdapterSpec
from lora_kit.errors import AdapterError
from lora_kit.heads import is_classifier
from lora_kit.unfrozen import copies_of, head_alone

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

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
# More than any training has.
UNKNOWN_STEPS = 10**9
# What PEFT does to the backbone itself.
CHANGES_THE_BASE = {
    "bias": "trains biases of the backbone in their place",
    "layer_replication": "stacks the backbone's layers anew",
}
# Initialisations that take something out of the backbone's weights: switched off, the adapter would
# leave what is not the base. And those that look at what they are not given here.
TAKES_OUT = "takes a part out of the backbone's weights, so that the base is not there any more"
NOT_POSSIBLE = {
    "pissa": TAKES_OUT,
    "olora": TAKES_OUT,
    "corda": TAKES_OUT,
    "eva": "looks at activations of the data, which it is not given yet",
    "loftq": "looks at the weights before they are quantized, which it is not given yet",
    "lora_ga": "looks at gradients of the data, which it is not given yet",
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
    config = _configuration(spec, model)
    if beside and hasattr(config, "modules_to_save"):
        config.modules_to_save = [*(config.modules_to_save or []), *beside]
    return config


def _configuration(spec: AdapterSpec, model: torch.nn.Module) -> PeftConfig:
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
    named = _in_peft_names(spec, fields)
    options = _options(spec, fields - set(named), kind)
    targets = None if _has_own_targets(spec) else spec.targets
    try:
        return kind(
            task_type="SEQ_CLS" if is_classifier(model) else "CAUSAL_LM",
            **({"target_modules": targets} if targets is not None else {}),
            **named,
            **options,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise AdapterError(f"adapter: {spec.method}: {error}") from error


def _require_nothing_else(spec: AdapterSpec) -> None:
    """Raises AdapterError for a field of `adapter` that says nothing where weights are trained."""
    for field in ("rank", "alpha", "dropout", "options"):
        if getattr(spec, field):
            raise AdapterError(f"adapter.{field}: {spec.method} has none; leave it out")
    if spec.targets != "all-linear":
        raise AdapterError(f"adapter.targets: {spec.method} says what is trained; leave it out")


def _has_own_targets(spec: AdapterSpec) -> bool:
    return spec.targets == "all-linear" and spec.method in OWN_TARGETS


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
    start = str(spec.options.get("init_lora_weights", "")).lower()
    for name, why in NOT_POSSIBLE.items():
        if start.startswith(name):
            raise AdapterError(
                f"adapter.options.init_lora_weights: {start} {why}; possible: gaussian, "
                "orthogonal, true, false"
            )
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
        found[name] = _converted(name, value, hints)
    if found.get("init_r", math.inf) <= found.get("target_r", spec.rank or 8):
        raise AdapterError("adapter.options.init_r: adalora begins with more than `rank`; raise it")
    return found


def _hints(kind: type) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:
        return {}  # a name that PEFT imports for type checkers alone


def _converted(name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """PEFT's classes take a value of any type, and fail much later; YAML's `1e-2` is a text."""
    try:
        return TypeAdapter(hints.get(name, Any)).validate_python(value)
    except PydanticUserError:
        return value
    except ValidationError as error:
        raise AdapterError(
            f"adapter.options.{name}: {error.errors()[0]['msg']}, found {value!r}"
        ) from error
