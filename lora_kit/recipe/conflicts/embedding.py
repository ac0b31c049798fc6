"""Rules about the objective embedding."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.conflicts.objective import OBJECTIVE
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections


def in_batch_negatives(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse steps of one pair, which has no other texts to be told from."""
    training = recipe.training
    if training.objective == "embedding" and training.batch_size == 1:
        yield conflict(
            "training.batch_size",
            OBJECTIVE,
            reason="the negatives of a pair are the other texts of its step",
            given=1,
            fix="use at least 2; more negatives teach more",
        )


def adapter_of_embeddings(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse methods that train a head alone, or add virtual tokens that pooling would count."""
    adapter = recipe.adapter
    if recipe.training.objective != "embedding":
        return
    if adapter.method == "head":
        yield conflict(
            "adapter.method",
            OBJECTIVE,
            reason="an embedding is pooled from hidden states and has no head to train",
            given=adapter.method,
            fix="use lora",
        )
    elif adapter.virtual_tokens:
        yield conflict(
            "adapter.method",
            OBJECTIVE,
            reason="an embedding is pooled from the tokens of the text, which virtual tokens are "
            "not",
            given=adapter.method,
            fix="use lora, or another method that changes layers",
        )
