"""Rules about `merge`, and about arms that are merged models."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.adapter import NOT_MERGED, VIRTUAL
from lora_kit.recipe.initialisations import OPTION, initialisation_of
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import MergeSpec, RecipeSections


def two_equal_merges(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse to merge into both bases where they are the same."""
    if recipe.merge.base == "both" and recipe.backbone.quantization == "none":
        yield conflict(
            "merge.base",
            "backbone.quantization",
            reason="backbone.quantization is none, so the two merges would be the same",
            given="both",
            fix="use original",
        )


def method_without_merge(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse merged models of methods that cannot be merged."""
    method = recipe.adapter.method
    if method not in NOT_MERGED:
        return
    reason = f"{method} cannot be merged: {NOT_MERGED[method]}"
    if method in VIRTUAL:
        reason = f"{method} changes no weight that could be merged"
    for arm in recipe.evaluation.arms:
        if arm.startswith("merged"):
            yield conflict(
                "evaluation.arms", "adapter.method", reason=reason, given=arm, fix="remove the arm"
            )
    if recipe.merge != MergeSpec():
        yield conflict("merge", "adapter.method", reason=reason, fix="remove the section")


def loftq_on_original_weights(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse to merge LoftQ's factors into weights that lack no quantization error."""
    if initialisation_of(recipe.adapter) == "loftq" and recipe.merge.base != "dequantized":
        yield conflict(
            "merge.base",
            f"adapter.options.{OPTION}",
            reason="an adapter that began with loftq holds the quantization error, which the "
            "original weights do not have",
            given=recipe.merge.base,
            fix="use dequantized",
        )
