"""`adapter_config.json` of whatever tool, read as PEFT's configuration and not otherwise.

PEFT drops what it does not know with a warning, so that an adapter of a newer one would be computed
as another; and it takes any value of any type, which fails where it is used, or does not.
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

# Of older PEFT, what says how an adapter was kept in memory: it computes the same.
WITHOUT_EFFECT = ("merge_weights", "runtime_config")
# PEFT says that it is a text, and takes a list of them.
NOT_CHECKED = ("layers_pattern",)
# What PEFT, safetensors and torch raise where a configuration or weights do not fit a model: a name
# that is no regular expression (`re.error`), a rank of 0, a token past the vocabulary.
NOT_FITTING = (
    *(ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(re.error, SafetensorError),
)
# Of numbers: strictly, pydantic takes whole ones for it too, and no true or false.
NUMBER = float


def read_configuration(path: Path, error: type[LoraKitError]) -> PeftConfig:
    """Read an adapter's configuration; what can be done with it, `require_options` is asked next.

    Args:
        path: of `adapter_config.json`.
        error: class of the errors.

    Raises:
        error: if it is no JSON, its method is unknown to this PEFT, or a value of another type.
    """
    from peft import PeftConfig

    value = read_json(path, error)
    kind = _kind(value.get("peft_type"), path, error)
    require_types(value, kind, path, error)
    try:
        return PeftConfig.from_pretrained(str(path.parent))
    except (ValueError, TypeError, KeyError) as problem:
        raise error(f"{path}: {problem}") from problem


def require_options(config: PeftConfig, path: Path, error: type[LoraKitError]) -> None:
    """Refuse an adapter with options that PEFT drops.

    Args:
        config: read from the file.
        path: of `adapter_config.json`.
        error: class of the errors.

    Raises:
        error: naming the first option, unless it is off.
    """
    known = {*WITHOUT_EFFECT, *(field.name for field in dataclasses.fields(config))}
    value = read_json(path, error)
    for name, found in value.items():
        if name not in known and not is_off(found):
            of = value.get("peft_version")
            by = f" (the adapter is of {of})" if of else ""
            raise error(
                f"{path}: {name}: {found!r} is an option that {config.peft_type.value} does not "
                f"have in PEFT {_version()}{by}, which would compute the adapter without it. Train "
                "it again with this PEFT, or take the option out if it changes nothing"
            )


def is_off(value: Any) -> bool:
    """Whether an option, be it unknown, changes nothing: not set, false or empty."""
    return value in (None, False, "", "none", [], {})


def _kind(found: Any, path: Path, error: type[LoraKitError]) -> type[PeftConfig]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    # An enumeration of texts.
    known: dict[str, type[PeftConfig]] = {
        kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    if not isinstance(found, str) or found not in known:
        raise error(
            f"{path}: peft_type: {found!r} is no method of PEFT {_version()}; possible: "
            f"{', '.join(sorted(known))}"
        )
    return known[found]


def _version() -> str:
    import peft

    return str(peft.__version__)


def require_types(
    value: Mapping[str, Any], kind: type[PeftConfig], path: Path, error: type[LoraKitError]
) -> None:
    """Refuse a value of another type than the option has.

    Args:
        value: of the whole file.
        kind: PEFT's class for it.
        path: of the file.
        error: class of the errors.

    Raises:
        error: naming the option, and what is possible.
    """
    hints = _hints(kind)
    for name, found in value.items():
        hint = hints.get(name, Any)
        # What is off does no harm, except as a number.
        if is_off(found) and hint is not NUMBER:
            continue
        try:
            TypeAdapter(hint).validate_json(json.dumps(found), strict=True)
        except PydanticUserError:
            continue
        except ValidationError as problem:
            said = problem.errors()[0]["msg"]
            raise error(f"{path}: {name}: {found!r}: {said}") from problem


def _hints(kind: type[PeftConfig]) -> dict[str, Any]:
    """The types of a method's options, as far as PEFT keeps to them itself."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:
        return {}  # a name that PEFT imports for type checkers alone
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if hint in (int, float):
            # An alpha of 0.5 is computed with; of virtual tokens some numbers are the backbone's.
            hints[field.name] = NUMBER | None if field.default is None else NUMBER
        # AdaLoRA keeps which ranks are left.
        elif field.name.endswith("_pattern") and kind.__name__ != "AdaLoraConfig":
            hints[field.name] = dict[str, NUMBER] | None
        # It knows more than it names, such as `pissa_niter_4`.
        elif any(typing.get_origin(one) is Literal for one in (hint, *typing.get_args(hint))):
            hints[field.name] = str | bool | None
    return {name: hint for name, hint in hints.items() if name not in NOT_CHECKED}
