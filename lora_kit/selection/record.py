"""Scores of each backbone, and their ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lora_kit.runtime.files import finite


@dataclass(frozen=True)
class MeanScore:
    """Mean over items with its 95% interval.

    Attributes:
        mean: mean of the scores.
        low: lower limit.
        high: upper limit.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskScore:
    """Scores of a backbone on a gain task, without training.

    Attributes:
        task: suite and name of the task.
        unit: unit of the scores; losses are in bits per byte, which do not depend on the tokenizer.
        higher_is_better: false for losses.
        zero_shot: score without examples; `None` for an encoder, which generates nothing.
        few_shot: score with training rows in the prompt; `None` where none can be shown.
        probe: accuracy of a logistic regression on the frozen features; `None` unless the task is a
            classification whose training rows have labels.
    """

    task: str
    unit: str
    higher_is_better: bool
    zero_shot: MeanScore | None
    few_shot: MeanScore | None
    probe: MeanScore | None

    @property
    def best(self) -> float:
        """Best of the three scores, negated for losses so that higher is better."""
        means = [one.mean for one in (self.zero_shot, self.few_shot, self.probe) if one]
        return max(mean if self.higher_is_better else -mean for mean in means)


@dataclass(frozen=True)
class BackboneResult:
    """Result of one backbone.

    Attributes:
        backbone: reference of the backbone.
        refused: reason why nothing was measured; empty if it was.
        parameters: number of parameters of the frozen model.
        scores: scores on the recipe's gain tasks.
        tokens_per_second: training speed with the recipe's adapter; `None` if it does not fit.
        memory: estimated peak memory of the training, in bytes; `None` if it is not known.
        license: licence as stated; `None` if none is.
        rank: rank, 1 being the best, by the mean of the ranks on the tasks, where the best score of
            each task counts; 0 for a refused backbone.
    """

    backbone: str
    refused: str = ""
    parameters: int = 0
    scores: tuple[TaskScore, ...] = ()
    tokens_per_second: float | None = None
    memory: int | None = None
    license: str | None = None
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON; infinite limits are null."""
        value: dict[str, Any] = finite(asdict(self))
        return value


def rank_backbones(several: Sequence[BackboneResult]) -> tuple[BackboneResult, ...]:
    """Rank backbones, best first; equal ranks by training speed, refused backbones last."""
    measured = [one for one in several if not one.refused]
    means = np.zeros(len(measured))
    for task in range(len(measured[0].scores) if measured else 0):
        best = np.array([one.scores[task].best for one in measured])
        means += (best[None, :] > best[:, None]).sum(axis=1)
    speeds = [one.tokens_per_second or 0.0 for one in measured]
    order = sorted(range(len(measured)), key=lambda n: (means[n], -speeds[n]))
    ranks = {n: 1 + int((means < means[n]).sum()) for n in order}
    return (
        *(replace(measured[n], rank=ranks[n]) for n in order),
        *(one for one in several if one.refused),
    )
