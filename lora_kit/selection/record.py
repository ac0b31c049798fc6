"""What was found out about each backbone, and how they are ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lora_kit.runtime.files import finite


@dataclass(frozen=True)
class Level:
    """A mean over items with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskScore:
    """How a backbone does on a gain task without training.

    Attributes:
        unit: of the task; losses are in bits per byte, which tokenizers do not change.
        zero_shot: asked as it is; `None` of an encoder, which says nothing.
        few_shot: asked with training rows before it; `None` where none can be shown.
        probe: right answers of a logistic regression on the frozen features, of classifications
            whose training rows have labels.
    """

    task: str
    unit: str
    higher_is_better: bool
    zero_shot: Level | None
    few_shot: Level | None
    probe: Level | None

    @property
    def best(self) -> float:
        """The best of the three, higher being better."""
        found = [one.mean for one in (self.zero_shot, self.few_shot, self.probe) if one]
        return max(value if self.higher_is_better else -value for value in found)


@dataclass(frozen=True)
class BackboneResult:
    """A backbone.

    Attributes:
        refused: why nothing was measured, else empty.
        parameters: of the model, frozen.
        scores: of the recipe's gain tasks.
        tokens_per_second: of training the recipe's adapter; `None` where it would not fit.
        memory: bytes that the recipe's training takes at most; `None` where it is not estimated.
        license: as it is stated; `None` where it is not.
        rank: 1 is the best: the mean of the ranks on the tasks, by the best of each task's scores;
            0 of one that was refused.
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
        """As JSON; infinite limits are null."""
        value: dict[str, Any] = finite(asdict(self))
        return value


def ranked(several: Sequence[BackboneResult]) -> tuple[BackboneResult, ...]:
    """In the order of their ranks, of equal ones the faster first; refused ones at the end."""
    measured = [one for one in several if not one.refused]
    means = np.zeros(len(measured))
    for task in range(len(measured[0].scores) if measured else 0):
        best = np.array([one.scores[task].best for one in measured])
        means += (best[None, :] > best[:, None]).sum(axis=1)
    speeds = [one.tokens_per_second or 0.0 for one in measured]
    order = sorted(range(len(measured)), key=lambda n: (means[n], -speeds[n]))
    places = {n: 1 + int((means < means[n]).sum()) for n in order}
    return (
        *(replace(measured[n], rank=places[n]) for n in order),
        *(one for one in several if one.refused),
    )
