"""What an adapter's configuration names in the backbone, modules and tokens, has to be there.

PEFT passes over a name that nothing has, where others of the same option match, and fails much
later over a token that the vocabulary does not have.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftConfig

# Names of an option that PEFT compares with the ends of modules' names: after a dot, or anywhere.
AFTER_A_DOT = ("exclude_modules",)
ANYWHERE = ("modules_to_save", "feedforward_modules")
PARAMETERS = "target_parameters"
# A value for each name, which is a regular expression.
PATTERN = "_pattern"
# Tokens whose rows are trained.
TOKENS = ("token_indices", "trainable_token_indices")


def require_targets(model: torch.nn.Module, targets: list[str]) -> None:
    """Refuse names in `adapter.target_modules` that no module has.

    Raises:
        AdapterError: naming the linear modules that there are.
    """
    # PEFT complains only if none of the targets matches.
    names = [name for name, _ in model.named_modules()]
    unmatched = [t for t in targets if not any(_ends(name, t) for name in names)]
    if unmatched:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if _is_linear(m)})
        raise AdapterError(
            f"adapter.target_modules: no module is called {', '.join(unmatched)}; linear modules of this "
            f"backbone: {', '.join(linear)}"
        )


def _is_linear(module: torch.nn.Module) -> bool:
    # The quantized linear layers of bitsandbytes inherit from it.
    return isinstance(module, torch.nn.Linear)


def _ends(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def require_named(model: torch.nn.Module, config: PeftConfig) -> None:
    """Refuse names in `adapter.options` that nothing in the backbone has.

    Args:
        model: the backbone, nothing attached to it.
        config: PEFT's, of what is to be attached.

    Raises:
        AdapterError: naming the option, and what there is.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for option in (*AFTER_A_DOT, *ANYWHERE):
        matches = _ends if option in AFTER_A_DOT else str.endswith
        _require(option, getattr(config, option, None), modules, matches)
    _require(PARAMETERS, getattr(config, PARAMETERS, None), parameters, _ends)
    adapted = [*modules, *(parameters if getattr(config, PARAMETERS, None) else ())]
    for option, value in vars(config).items():
        if option.endswith(PATTERN) and isinstance(value, Mapping):
            searched = config.peft_type == "OSF"
            _require(option, list(value), adapted, _holds if searched else _follows)
    by_token = getattr(config, TOKENS[1], None)
    if isinstance(by_token, Mapping):
        _require(TOKENS[1], list(by_token), modules, str.endswith)
    require_tokens(model, config, "adapter.options.")


def _follows(name: str, pattern: str) -> bool:
    """As PEFT's `get_pattern_key` matches."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _holds(name: str, pattern: str) -> bool:
    """As PEFT's OSF matches."""
    return re.search(pattern, name) is not None


def _require(
    option: str, value: Any, names: Sequence[str], matches: Callable[[str, str], bool]
) -> None:
    """Raises AdapterError for the first of an option's names that is no module's or parameter's."""
    if isinstance(value, str) and option in AFTER_A_DOT:
        # A text is one regular expression for the whole of a name.
        value, matches = [value], lambda name, pattern: re.fullmatch(pattern, name) is not None
    for wanted in value or ():
        try:
            found = any(matches(name, wanted) for name in names)
        except re.error as error:
            raise AdapterError(
                f"adapter.options.{option}: {wanted} is no regular expression: {error}"
            ) from error
        if not found:
            raise AdapterError(f"adapter.options.{option}: {_unknown(option, wanted, names)}")


def _unknown(option: str, wanted: str, names: Sequence[str]) -> str:
    kind, parts = ("parameter", 2) if option == PARAMETERS else ("module", 1)
    known = sorted({".".join(name.split(".")[-parts:]) for name in names} - _numbers(names))
    close = difflib.get_close_matches(wanted, known, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"no {kind} is called {wanted}.{meant} Possible: {', '.join(known)}"


def _numbers(names: Sequence[str]) -> set[str]:
    return {part for name in names for part in name.split(".") if part.isdigit()}


def require_tokens(model: torch.nn.Module, config: PeftConfig, where: str) -> None:
    """Refuse tokens that the backbone's vocabulary does not have, and none at all.

    Args:
        model: the backbone, nothing attached to it.
        config: PEFT's, of any method.
        where: stands before the option's name in errors.

    Raises:
        AdapterError: naming the option, and which tokens there are.
    """
    for option in TOKENS:
        asked = getattr(config, option, None)
        if asked is None:
            continue
        named = f"{where}{option}"
        if isinstance(asked, Mapping):
            for name, tokens in asked.items():
                _require_in(tokens, _rows(model, [name]), f"{named}.{name}")
            continue
        # Of LoRA, the targets are those of its factors.
        targets = config.target_modules if option == TOKENS[0] else None
        _require_in(asked, _rows(model, [] if isinstance(targets, str) else targets or []), named)


def _rows(model: torch.nn.Module, names: Collection[str]) -> int:
    """How many tokens the modules of some names have a row for; the embedding, where none has."""
    named = [m for full, m in model.named_modules() if any(full.endswith(name) for name in names)]
    known = [_size(module) for module in named if _size(module)]
    return min(known, default=_size(model.get_input_embeddings()))  # type: ignore[operator]


def _size(module: torch.nn.Module) -> int:
    sizes = (getattr(module, name, None) for name in ("num_embeddings", "out_features"))
    return next((int(size) for size in sizes if size), 0)


def _require_in(tokens: Sequence[int], rows: int, named: str) -> None:
    possible = f"possible: ids of 0 to {rows - 1}"
    if not tokens:
        raise AdapterError(f"{named}: names no token, so that no row would be trained; {possible}")
    strange = [token for token in tokens if not 0 <= token < rows]
    if strange:
        raise AdapterError(f"{named}: {strange[0]} is no token of this backbone; {possible}")
