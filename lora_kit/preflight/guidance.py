"""Hints from the number of examples: trained weights, rank, learning rate, number of steps.

Hints are rules of thumb with a reason and never change a recipe: a measured recipe knows better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lora_kit.data.prepared import Counts
from lora_kit.recipe.objective import LANGUAGE_MODELING
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import FEWSHOT
from lora_kit.training.step_sizes import optimizer_steps

FEW_EXAMPLES = 200
# Recommended learning rates: LoRA's best rate is about ten times that of full fine-tuning and
# hardly depends on the rank (Schulman et al. 2025, "LoRA Without Regret"; Biderman et al. 2024,
# arXiv:2405.09673).
LORA_LEARNING_RATES = (1e-4, 2e-3)
FULL_LEARNING_RATES = (5e-6, 2e-4)
SHORT_TRAINING_STEPS = 100
# Capacity of a trained parameter (Allen-Zhu & Li 2024, arXiv:2404.05405), and information in a
# supervised token (about its remaining entropy under a fine-tuned model).
BITS_PER_PARAMETER, BITS_PER_TOKEN = 2.0, 1.0
MIN_STEPS = 30
MAX_EPOCHS = 3.0


@dataclass(frozen=True)
class Hint:
    """Suggested change of a recipe.

    Attributes:
        assignments: arguments of `--set`, to be applied together.
        reason: reason in words.
    """

    assignments: tuple[str, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the hint as JSON values."""
        return asdict(self)


def recipe_hints(recipe: Recipe, counts: Counts, parameters: int) -> tuple[Hint, ...]:
    """Return changes that the number of examples suggests.

    There are no such rules for preference objectives, rewards and classification.

    Args:
        recipe: recipe of the training.
        counts: counts of its rows, examples and tokens.
        parameters: number of trained parameters.
    """
    if recipe.training.objective not in LANGUAGE_MODELING:
        return ()
    own_examples = counts.used - counts.replay_rows
    return (
        *_trained_weights_hints(recipe, own_examples),
        *_rank_hints(recipe, counts, parameters),
        *_learning_rate_hints(recipe, counts),
        *_step_hints(recipe, counts),
        *_evaluation_hints(recipe, own_examples),
    )


def _trained_weights_hints(recipe: Recipe, examples: int) -> Iterator[Hint]:
    if recipe.adapter.trains_weights and examples < FEW_EXAMPLES:
        yield Hint(
            ("adapter.method=lora", "training.learning_rate=5e-4"),
            f"{examples} examples are few for full fine-tuning; LoRA learns as much from them and "
            "forgets less (Biderman et al. 2024)",
        )


def _rank_hints(recipe: Recipe, counts: Counts, parameters: int) -> Iterator[Hint]:
    rank = recipe.adapter.rank
    needed = counts.supervised_tokens * BITS_PER_TOKEN / BITS_PER_PARAMETER
    if recipe.adapter.method != "lora" or not rank or not parameters or needed <= parameters:
        return
    larger = 2 ** math.ceil(math.log2(rank * needed / parameters))
    yield Hint(
        (f"adapter.rank={larger}", f"adapter.alpha={2 * larger}"),
        f"{counts.supervised_tokens:,} supervised tokens need about {needed:,.0f} parameters "
        f"({BITS_PER_TOKEN:g} bit per token, {BITS_PER_PARAMETER:g} bits per parameter); rank "
        f"{rank} has {parameters:,}",
    )


def _learning_rate_hints(recipe: Recipe, counts: Counts) -> Iterator[Hint]:
    spec, adapter = recipe.training, recipe.adapter
    if adapter.method != "lora" and not adapter.trains_weights:
        return
    low, high = FULL_LEARNING_RATES if adapter.trains_weights else LORA_LEARNING_RATES
    if low <= spec.learning_rate <= high:
        return
    # A short training needs larger steps.
    is_short = optimizer_steps(counts.used, spec) < SHORT_TRAINING_STEPS
    better = high / 2 if is_short else math.sqrt(low * high)
    method = "full fine-tuning" if adapter.trains_weights else "LoRA"
    yield Hint(
        (f"training.learning_rate={better:.1g}",),
        f"{spec.learning_rate:g} is {'below' if spec.learning_rate < low else 'above'} the usual "
        f"learning rates of {method}, {low:g} to {high:g} (short trainings near the upper end)",
    )


def _step_hints(recipe: Recipe, counts: Counts) -> Iterator[Hint]:
    spec = recipe.training
    steps = optimizer_steps(counts.used, spec)
    if steps >= MIN_STEPS:
        return
    smaller = max(counts.used * spec.epochs // MIN_STEPS, 1)
    batch = min(2 ** int(math.log2(smaller)), spec.batch_size)
    epochs = math.ceil(MIN_STEPS * batch / counts.used)
    assignments = [f"training.batch_size={batch}"] if batch < spec.batch_size else []
    if epochs > spec.epochs:
        assignments.append(f"training.epochs={min(epochs, int(MAX_EPOCHS))}")
    if assignments:
        yield Hint(
            tuple(assignments),
            f"{steps} optimizer steps hardly change an adapter; {counts.used} examples give "
            f"{MIN_STEPS} steps with smaller batches or more epochs",
        )


def _evaluation_hints(recipe: Recipe, examples: int) -> Iterator[Hint]:
    spec, early_stopping = recipe.training, recipe.retention.early_stopping
    # With adalora or early stopping on retention texts, keep_best is not supported.
    supports_keep_best = (
        recipe.data.validation and early_stopping is None and recipe.adapter.method != "adalora"
    )
    if spec.epochs > MAX_EPOCHS and not spec.keep_best and supports_keep_best:
        yield Hint(
            ("training.eval_steps=20", "training.keep_best=true"),
            f"after {MAX_EPOCHS:g} epochs an adapter begins to memorize its examples; the loss on "
            "data.validation shows when",
        )
    if examples < FEW_EXAMPLES and FEWSHOT not in recipe.evaluation.arms:
        arms = ", ".join((*recipe.evaluation.arms, FEWSHOT))
        yield Hint(
            (f"evaluation.arms=[{arms}]",),
            f"with {examples} examples, the base with some of them in its prompt is the baseline "
            "to beat",
        )
