"""Strict reading of `adapter_config.json`, written by any tool.

PEFT drops unknown options with a warning, so an adapter of a newer PEFT would give other outputs.
PEFT also accepts values of any type, which fail only where they are used, or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from safetensors import SafetensorError

from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.files import read_json

if TYPE_CHECKING:
    from peft import PeftConfig

# Prefix of the names in an adapter's weights.
PREFIX = "base_model.model."
# Options of older PEFT that do not change an adapter's outputs.
INERT_OPTIONS = ("merge_weights", "runtime_config")
# Declared by PEFT as a string, but lists are valid as well.
NOT_CHECKED = ("layers_pattern",)
# Errors of PEFT, safetensors and torch if a configuration or weights do not fit a model: an invalid
# regular expression (`re.error`), a rank of 0, a token outside of the vocabulary.
MISMATCH_ERRORS = (
    *(ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(re.error, SafetensorError),
)
# In strict mode, pydantic accepts integers for float, but no booleans.
NUMBER = float

# Options that leave an adapter `scaling * B @ A` and no more. Any other option that is set is
# refused, options of future PEFT versions included.
PLAIN = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern",
    "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size",
}  # fmt: skip
# Other initializations take the initial factors out of the base weights, which then differ from the
# backbone's; saved with `path_initial_model_for_weight_conversion`, the adapter is plain.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_configuration(path: Path, error: type[LoraKitError]) -> PeftConfig:
    """Read an adapter's configuration; check it with `require_known_options` afterwards.

    Args:
        path: path of `adapter_config.json`.
        error: class of the errors.

    Raises:
        error: if the file is not JSON, this PEFT does not know its method, or a value has another
            type than its option.
    """
    from peft import PeftConfig

    value = read_json(path, error)
    config_class = _config_class(value.get("peft_type"), path, error)
    require_option_types(value, config_class, path, error)
    try:
        return PeftConfig.from_pretrained(str(path.parent))
    except MISMATCH_ERRORS as problem:
        raise error(f"{path}: {problem}. Fix: correct the file") from problem


def require_known_options(config: PeftConfig, path: Path, error: type[LoraKitError]) -> None:
    """Refuse a configuration with options that PEFT drops.

    Args:
        config: configuration read from the file.
        path: path of `adapter_config.json`.
        error: class of the errors.

    Raises:
        error: naming the first unknown option that is set.
    """
    import peft

    known = {*INERT_OPTIONS, *(field.name for field in dataclasses.fields(config))}
    values = read_json(path, error)
    for name, value in values.items():
        if name not in known and not is_unset(value):
            version = values.get("peft_version")
            writer = f"; the adapter was saved by {version}" if version else ""
            raise error(
                f"{path}: {name}: {value!r} is an option that {config.peft_type.value} does not "
                f"have in PEFT {peft.__version__}, which would ignore it{writer}. Fix: train the "
                "adapter again with this PEFT, or remove the option if it has no effect"
            )


def is_unset(value: Any) -> bool:
    """Return true if an option's value has no effect, whatever the option: null, false or empty."""
    return value in (None, False, "", "none", [], {})


def plain_lora_problem(config: Mapping[str, Any]) -> str:
    """Return the reason why an adapter is more than `scaling * B @ A`; empty if it is plain."""
    if config.get("peft_type") != "LORA":
        return f"peft_type: not LoRA (got {config.get('peft_type')})"
    for option, value in config.items():
        if option not in PLAIN and not is_unset(value):
            return f"{option}: makes the adapter more than a low-rank update (got {value!r})"
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        return (
            "init_lora_weights: changes the base weights, so that the factors are the update only "
            f"if saved with path_initial_model_for_weight_conversion (got {start!r})"
        )
    return ""


def _config_class(peft_type: Any, path: Path, error: type[LoraKitError]) -> type[PeftConfig]:
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    # The keys are members of an enumeration of strings.
    known: dict[str, type[PeftConfig]] = {
        member.value: config for member, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    if not isinstance(peft_type, str) or peft_type not in known:
        raise error(
            f"{path}: peft_type: {peft_type!r} is not a method of PEFT {peft.__version__}. Fix: "
            f"use one of {', '.join(sorted(known))}, or another version of PEFT"
        )
    return known[peft_type]


def require_option_types(
    values: Mapping[str, Any],
    config_class: type[PeftConfig],
    path: Path,
    error: type[LoraKitError],
) -> None:
    """Refuse a value of another type than its option has.

    Args:
        values: contents of the file.
        config_class: PEFT's configuration class of the method.
        path: path of the file.
        error: class of the errors.

    Raises:
        error: naming the option, the value and the expected type.
    """
    hints = _option_types(config_class)
    for name, value in values.items():
        hint = hints.get(name, Any)
        # Unset values have no effect, except for numbers.
        if is_unset(value) and hint is not NUMBER:
            continue
        try:
            TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
        except PydanticUserError:
            continue
        except ValidationError as problem:
            expected = problem.errors()[0]["msg"]
            raise error(
                f"{path}: {name}: {value!r}: {expected}. Fix: correct the value"
            ) from problem


def _option_types(config_class: type[PeftConfig]) -> dict[str, Any]:
    """Return the types of a method's options, relaxed where PEFT accepts more than it declares."""
    try:
        hints = typing.get_type_hints(config_class)
    except NameError:
        return {}  # PEFT imports some names for type checkers only
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if hint in (int, float):
            # An alpha of 0.5 is valid; some numbers of prompt methods default to null.
            hints[field.name] = NUMBER | None if field.default is None else NUMBER
        # AdaLoRA stores masks of the remaining ranks.
        elif field.name.endswith("_pattern") and config_class.__name__ != "AdaLoraConfig":
            hints[field.name] = dict[str, NUMBER] | None
        # PEFT accepts more than the declared values, such as `pissa_niter_4`.
        elif any(typing.get_origin(one) is Literal for one in (hint, *typing.get_args(hint))):
            hints[field.name] = str | bool | None
    return {name: hint for name, hint in hints.items() if name not in NOT_CHECKED}
