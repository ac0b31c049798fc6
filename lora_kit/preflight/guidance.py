"""Advice from the number of examples: what to freeze, which rank, rate and number of steps.

Rules of thumb with their reasons, never changes: a recipe that was measured knows better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lora_kit.data.prepared import Counts
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.arguments import optimizer_steps

FEW = 200
# Of learning rates: LoRA's best is about ten times that of whole weights and hardly depends on the
# rank (Schulman et al. 2025, "LoRA Without Regret"; Biderman et al. 2024, arXiv:2405.09673).
LORA_RATES = (1e-4, 2e-3)
WHOLE_RATES = (5e-6, 2e-4)
SHORT = 100
# Bits that a trained parameter holds (Allen-Zhu & Li 2024, arXiv:2404.05405), and that a supervised
# token asks for (about what a fine-tuned model is left to guess of it).
BITS_A_PARAMETER, BITS_A_TOKEN = 2.0, 1.0
FEWEST_STEPS = 30
MOST_PASSES = 3.0


@dataclass(frozen=True)
class Hint:
    """What would be worth a try.

    Attributes:
        assignments: as after `--set`, all of them together.
        reason: why.
    """

    assignments: tuple[str, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def guidance(recipe: Recipe, counts: Counts, parameters: int) -> tuple[Hint, ...]:
    """What the number of examples speaks for, where the recipe does otherwise.

    Args:
        recipe: as it is.
        counts: of its rows and tokens.
        parameters: that are trained.
    """
    if recipe.training.objective not in ("sft", "text"):
        return ()  # of pairs and rewards there are no such rules
    own = counts.used - counts.replay_rows
    return (
        *_frozen(recipe, own),
        *_rank(recipe, counts, parameters),
        *_rate(recipe, counts),
        *_steps(recipe, counts),
        *_watched(recipe, own),
    )


def _frozen(recipe: Recipe, examples: int) -> Iterator[Hint]:
    if recipe.adapter.trains_weights and examples < FEW:
        yield Hint(
            ("adapter.method=lora", "training.learning_rate=5e-4"),
            f"{examples} examples are few for whole weights: LoRA learns as much from so few and "
            "forgets less (Biderman et al. 2024)",
        )


def _rank(recipe: Recipe, counts: Counts, parameters: int) -> Iterator[Hint]:
    rank = recipe.adapter.rank
    wanted = counts.supervised_tokens * BITS_A_TOKEN / BITS_A_PARAMETER
    if recipe.adapter.method != "lora" or not rank or not parameters or wanted <= parameters:
        return
    larger = 2 ** math.ceil(math.log2(rank * wanted / parameters))
    yield Hint(
        (f"adapter.rank={larger}", f"adapter.alpha={2 * larger}"),
        f"{counts.supervised_tokens:,} supervised tokens ask for about {wanted:,.0f} parameters "
        f"at {BITS_A_TOKEN:g} bit a token and {BITS_A_PARAMETER:g} a parameter; rank {rank} has "
        f"{parameters:,} and would not hold them all",
    )


def _rate(recipe: Recipe, counts: Counts) -> Iterator[Hint]:
    spec, adapter = recipe.training, recipe.adapter
    if adapter.method != "lora" and not adapter.trains_weights:
        return
    low, high = WHOLE_RATES if adapter.trains_weights else LORA_RATES
    if low <= spec.learning_rate <= high:
        return
    # Few steps have to go far.
    short = optimizer_steps(counts.used, spec) < SHORT
    better = high / 2 if short else math.sqrt(low * high)
    what = "whole weights learn" if adapter.trains_weights else "LoRA learns"
    yield Hint(
        (f"training.learning_rate={better:.1g}",),
        f"{what} best between {low:g} and {high:g}, short trainings at the upper end, and "
        f"{spec.learning_rate:g} is {'below' if spec.learning_rate < low else 'above'}",
    )


def _steps(recipe: Recipe, counts: Counts) -> Iterator[Hint]:
    spec = recipe.training
    steps = optimizer_steps(counts.used, spec)
    if steps >= FEWEST_STEPS:
        return
    smaller = max(counts.used * spec.epochs // FEWEST_STEPS, 1)
    batch = min(2 ** int(math.log2(smaller)), spec.batch_size)
    passes = math.ceil(FEWEST_STEPS * batch / counts.used)
    assignments = [f"training.batch_size={batch}"] if batch < spec.batch_size else []
    if passes > spec.epochs:
        assignments.append(f"training.epochs={min(passes, int(MOST_PASSES))}")
    if assignments:
        yield Hint(
            tuple(assignments),
            f"{steps} steps of the optimizer hardly move an adapter; {counts.used} examples make "
            f"{FEWEST_STEPS} with smaller batches, or when they are seen again",
        )


def _watched(recipe: Recipe, examples: int) -> Iterator[Hint]:
    spec, budget = recipe.training, recipe.retention.early_stopping
    # Of adalora, or beside a budget, no earlier weights are kept.
    may_keep = recipe.data.validation and budget is None and recipe.adapter.method != "adalora"
    if spec.epochs > MOST_PASSES and not spec.keep_best and may_keep:
        yield Hint(
            ("training.eval_steps=20", "training.keep_best=true"),
            f"after {MOST_PASSES:g} passes an adapter begins to know its examples by heart; the "
            "loss of data.validation says when",
        )
    if examples < FEW and "fewshot" not in recipe.evaluation.arms:
        arms = ", ".join((*recipe.evaluation.arms, "fewshot"))
        yield Hint(
            (f"evaluation.arms=[{arms}]",),
            f"with {examples} examples the base with some of them in its prompt is the baseline to "
            "beat",
        )
