"""What of a recipe asks for a merged model where the adapter's method has none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_kit.adapter_spec import NOT_MERGED, VIRTUAL

if TYPE_CHECKING:
    from lora_kit.recipe import Recipe


def refusals_of_merging(recipe: Recipe) -> Iterator[str]:
    """Each with field and reason; none where the method can be merged."""
    method = recipe.adapter.method
    if method not in NOT_MERGED:
        return
    why = f"{method} cannot be merged ({NOT_MERGED[method]})"
    if method in VIRTUAL:
        why = f"{method} changes no weight that could be merged"
    for arm in recipe.evaluation.arms:
        if arm.startswith("merged"):
            yield f"evaluation.arms: {arm}: {why}; leave it out"
    if recipe.merge != type(recipe.merge)():
        yield f"merge: {why}; leave the section out"
