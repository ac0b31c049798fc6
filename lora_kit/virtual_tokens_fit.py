"""What of a recipe does not go together with virtual tokens before the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_kit.adapter_spec import VIRTUAL

if TYPE_CHECKING:
    from lora_kit.recipe import Recipe

# TRL's other objectives and a classifier's head have forward passes of their own, in which nobody
# has looked yet whether the tokens are where they belong.
OBJECTIVES = ("sft", "text")


def refusals_of_tokens(recipe: Recipe) -> Iterator[str]:
    """Each with field and reason; none where the method changes layers."""
    method = recipe.adapter.method
    if method not in VIRTUAL:
        return
    training = recipe.training
    if training.objective not in OBJECTIVES:
        yield (
            f"adapter.method: {method}: is made for the objectives {' and '.join(OBJECTIVES)}, and "
            f"it is {training.objective}; use lora"
        )
    if recipe.data.packing:
        yield (
            f"data.packing: {method}'s tokens stand before the first example of a row alone; leave "
            "it out"
        )
    if training.gradient_checkpointing:
        yield (
            f"training.gradient_checkpointing: {method}'s tokens are keys and values before the "
            "text, which layers that are computed again leave away; set micro_batch_size instead"
        )
    for name in ("layer_decay", "unfreeze_steps"):
        if getattr(training, name) is not None:
            yield f"training.{name}: {method} trains no blocks; leave it out"
