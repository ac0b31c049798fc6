"""Rewards that can be verified: the harness's metrics of an answer against the row's reference.

An evaluation with a `generation` task of the same metric measures what is rewarded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_kit.errors import EvaluationError, RecipeError
from lora_kit.evaluation.grading import said
from lora_kit.evaluation.metrics import load_metric
from lora_kit.objective_spec import GrpoSpec

Reward = Callable[..., list[float | None]]


def rewards_of(spec: GrpoSpec) -> list[Reward]:
    """One function a metric, as TRL calls them.

    Raises:
        RecipeError: if there is no such metric.
    """
    try:
        return [_reward(name, spec.answer == "first_line") for name in spec.rewards]
    except EvaluationError as error:
        raise RecipeError(f"grpo.rewards: {error}") from error


def _reward(name: str, first_line: bool) -> Reward:
    metric = load_metric(name)

    def reward(
        completions: Sequence[Sequence[dict[str, Any]]], reference: Sequence[str], **_: Any
    ) -> list[float | None]:
        return [
            metric(said(turns[0]["content"], first_line), [wanted])
            for turns, wanted in zip(completions, reference, strict=True)
        ]

    # What the figures of a step are named by.
    reward.__name__ = Path(name).stem
    return reward
