"""Checks that the modules and tokens in an adapter's configuration exist in the backbone.

PEFT ignores an unknown name if other names of the same option match, and fails much later on a
token outside of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.adapter.quick_patterns import require_quick_patterns
from lora_kit.runtime.errors import AdapterError, did_you_mean

if TYPE_CHECKING:
    from peft import PeftConfig

# Options whose names PEFT matches with a suffix of module names: complete parts, or any suffix.
COMPLETE_SUFFIX = ("exclude_modules",)
ANY_SUFFIX = ("modules_to_save", "feedforward_modules")
PARAMETERS = "target_parameters"
# Ending of options that map regular expressions of names to values.
PATTERN = "_pattern"
# Options that name the tokens whose embeddings are trained.
TOKEN_OPTIONS = ("token_indices", "trainable_token_indices")


def require_target_modules(model: torch.nn.Module, targets: list[str]) -> None:
    """Refuse names in `adapter.target_modules` that match no module.

    Raises:
        AdapterError: naming the linear modules of the backbone.
    """
    # PEFT raises an error only if none of the targets matches.
    names = [name for name, _ in model.named_modules()]
    unmatched = [t for t in targets if not any(_has_suffix(name, t) for name in names)]
    if unmatched:
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            # Includes the quantized linear layers of bitsandbytes, which are subclasses.
            if isinstance(module, torch.nn.Linear)
        }
        raise AdapterError(
            f"adapter.target_modules: no module is called {', '.join(unmatched)}. Fix: name "
            f"linear modules of this backbone: {', '.join(sorted(linear))}"
        )


def _has_suffix(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def require_known_names(model: torch.nn.Module, config: PeftConfig) -> None:
    """Refuse names in `adapter.options` that match no module or parameter of the backbone.

    Args:
        model: backbone without an adapter.
        config: PEFT's configuration of the adapter.

    Raises:
        AdapterError: naming the option, and the possible names.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    require_quick_patterns(vars(config), [*modules, *parameters], "adapter.options.")
    for option in (*COMPLETE_SUFFIX, *ANY_SUFFIX):
        matches = _has_suffix if option in COMPLETE_SUFFIX else str.endswith
        _require_matches(option, getattr(config, option, None), modules, matches)
    _require_matches(PARAMETERS, getattr(config, PARAMETERS, None), parameters, _has_suffix)
    adapted = [*modules, *(parameters if getattr(config, PARAMETERS, None) else ())]
    for option, value in vars(config).items():
        if option.endswith(PATTERN) and isinstance(value, Mapping):
            searches = _matches_anywhere if config.peft_type == "OSF" else _matches_suffix
            _require_matches(option, list(value), adapted, searches)
    by_module = getattr(config, TOKEN_OPTIONS[1], None)
    if isinstance(by_module, Mapping):
        _require_matches(TOKEN_OPTIONS[1], list(by_module), modules, str.endswith)
    require_known_tokens(model, config, "adapter.options.")


def _matches_suffix(name: str, pattern: str) -> bool:
    """Match as PEFT's `get_pattern_key` does."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _matches_anywhere(name: str, pattern: str) -> bool:
    """Match as PEFT's OSF does."""
    return re.search(pattern, name) is not None


def _require_matches(
    option: str, value: Any, names: Sequence[str], matches: Callable[[str, str], bool]
) -> None:
    """Raise AdapterError for the first of an option's values that matches no name."""
    if isinstance(value, str) and option in COMPLETE_SUFFIX:
        # PEFT reads a string as a regular expression of the complete name.
        value, matches = [value], lambda name, pattern: re.fullmatch(pattern, name) is not None
    for requested in value or ():
        try:
            is_known = any(matches(name, requested) for name in names)
        except re.error as error:
            raise AdapterError(
                f"adapter.options.{option}: {requested} is not a regular expression ({error}). "
                "Fix: escape or correct it"
            ) from error
        if not is_known:
            raise AdapterError(
                f"adapter.options.{option}: {_unknown_name(option, requested, names)}"
            )


def _unknown_name(option: str, requested: str, names: Sequence[str]) -> str:
    kind, parts = ("parameter", 2) if option == PARAMETERS else ("module", 1)
    indices = {part for name in names for part in name.split(".") if part.isdigit()}
    known = sorted({".".join(name.split(".")[-parts:]) for name in names} - indices)
    hint = did_you_mean(requested, known)
    return f"no {kind} is called {requested}.{hint} Fix: use one of {', '.join(known)}"


def require_known_tokens(model: torch.nn.Module, config: PeftConfig, prefix: str) -> None:
    """Refuse token ids outside of the backbone's vocabulary, and an empty list of tokens.

    Args:
        model: backbone without an adapter.
        config: PEFT's configuration, of any method.
        prefix: text before the option's name in errors.

    Raises:
        AdapterError: naming the option, and the range of token ids.
    """
    for option in TOKEN_OPTIONS:
        requested = getattr(config, option, None)
        if requested is None:
            continue
        field = f"{prefix}{option}"
        if isinstance(requested, Mapping):
            for name, tokens in requested.items():
                _require_token_ids(tokens, _token_count(model, [name]), f"{field}.{name}")
            continue
        # For LoRA, `target_modules` names the modules of its factors instead.
        targets = config.target_modules if option == TOKEN_OPTIONS[0] else None
        names = [] if isinstance(targets, str) else targets or []
        _require_token_ids(requested, _token_count(model, names), field)


def _token_count(model: torch.nn.Module, names: Collection[str]) -> int:
    """Return the smallest number of rows of the named modules, by default the embedding's."""
    named = [m for full, m in model.named_modules() if any(full.endswith(name) for name in names)]
    counts = [_row_count(module) for module in named if _row_count(module)]
    return min(counts, default=_row_count(model.get_input_embeddings()))  # type: ignore[operator]


def _row_count(module: torch.nn.Module) -> int:
    sizes = (getattr(module, name, None) for name in ("num_embeddings", "out_features"))
    return next((int(size) for size in sizes if size), 0)


def _require_token_ids(tokens: Sequence[int], count: int, field: str) -> None:
    fix = f"Fix: use token ids from 0 to {count - 1}"
    if not tokens:
        raise AdapterError(f"{field}: names no token, so no embedding would be trained. {fix}")
    unknown = [token for token in tokens if not 0 <= token < count]
    if unknown:
        raise AdapterError(f"{field}: {unknown[0]} is not a token of this backbone. {fix}")
