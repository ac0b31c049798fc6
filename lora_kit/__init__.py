"""Adapt a frozen language model, prove what it gained and what it forgot, release what passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_kit.runtime.heap import bound_programs
from lora_kit.runtime.logs import hide_missing_kernels
from lora_kit.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from lora_kit.pipeline import evaluate, merge, release, train
    from lora_kit.recipe.recipe import Recipe

__all__ = ["Recipe", "evaluate", "merge", "release", "train"]

# Before anything imports bitsandbytes, and before torch computes.
hide_missing_kernels()
bound_programs()


def __getattr__(name: str) -> Any:
    # Loaded when asked for: torch and transformers take seconds to import.
    if name == "Recipe":
        from lora_kit.recipe.recipe import Recipe

        return Recipe
    if name in __all__:
        from lora_kit import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
