"""Rules about `training.domain_alignment`."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.conflicts.objective import OBJECTIVE
from lora_kit.recipe.objective import WHOLE_TEXT_HEADS
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections

FIELD = "training.domain_alignment"


def alignment_of_trained_features(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse to align features where there are none of a whole text, or frozen ones."""
    if recipe.training.domain_alignment is None:
        return
    if recipe.training.objective not in WHOLE_TEXT_HEADS:
        yield conflict(
            FIELD,
            OBJECTIVE,
            reason=f"works with {' or '.join(WHOLE_TEXT_HEADS)} only",
            fix="remove it",
        )
    if recipe.adapter.method == "head":
        yield conflict(
            FIELD,
            "adapter.method",
            reason="changes the features that the head reads, and with adapter.method head they "
            "are frozen",
            fix="use lora, or data.reweight",
        )


def covariance_of_a_step(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse passes that have a part of the step where the covariance of the whole is needed."""
    training, alignment = recipe.training, recipe.training.domain_alignment
    if alignment is None or alignment.method != "coral":
        return
    if training.micro_batch_size not in (None, training.batch_size):
        yield conflict(
            "training.micro_batch_size",
            FIELD,
            reason="coral compares the covariances of a whole step, which is one pass",
            given=training.micro_batch_size,
            fix=f"use {training.batch_size}, as training.batch_size, or remove it",
        )
    if training.max_tokens_per_batch is not None:
        yield conflict(
            "training.max_tokens_per_batch",
            FIELD,
            reason="coral compares the covariances of a whole step, which is one pass",
            given=training.max_tokens_per_batch,
            fix="remove it, and lower data.max_length or training.batch_size for less memory",
        )
    if training.batch_size == 1:
        yield conflict(
            "training.batch_size",
            FIELD,
            reason="coral needs several rows in a step; one has no covariance",
            given=1,
            fix="raise it",
        )
