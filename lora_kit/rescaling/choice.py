"""Choose the scale with the largest gain among those that keep retention, on half A.

Functions of verdicts only: intervals, margins and decisions are those of every evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.evaluation.suite import SuiteRole
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.rescaling.scale import AdapterScale

# Decimals to which gains are compared: the order of a sum changes the last digits.
GAIN_DECIMALS = 9


@dataclass(frozen=True)
class Candidate:
    """Scale, and its verdict on half A.

    Attributes:
        scale: scale of the adapter.
        verdict: verdict on half A.
    """

    scale: AdapterScale
    verdict: Verdict

    def tasks(self, role: SuiteRole) -> list[tuple[str, TaskVerdict]]:
        """Return the tasks of one role, as (suite/task, verdict)."""
        return [
            (f"{suite.suite}/{task.task}", task)
            for suite, task in self.verdict.tasks
            if suite.role == role
        ]

    @property
    def failed_retention(self) -> tuple[str, ...]:
        """Names of the retention tasks that are not shown to be within their margin."""
        return tuple(n for n, task in self.tasks("retention") if task.decision != "PASS")


@dataclass(frozen=True)
class Gain:
    """Gain of a candidate over all gain tasks, in half-widths of their intervals.

    Attributes:
        value: mean standardized difference.
        low: lower limit.
        high: upper limit.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScaleChoice:
    """Chosen scale, and the reason.

    Attributes:
        chosen: index of the chosen candidate; `None` if no scale qualifies.
        reason: reason of the choice, in words.
        gains: gain of each candidate, see `standardized_gains`.
    """

    chosen: int | None
    reason: str
    gains: tuple[Gain, ...]


def choose_scale(candidates: Sequence[Candidate]) -> ScaleChoice:
    """Choose the scale with the largest gain of those that keep all retention tasks.

    A retention task is kept if its verdict is PASS: the pessimistic limit clears the margin. The
    gain is that of `standardized_gains`; of equal gains the weaker adapter is chosen, which changes
    the model less. The base, scale 0, is a candidate too, which keeps everything and gains nothing:
    no scale is chosen that does not gain more.
    """
    gains = standardized_gains(candidates)
    kept = [n for n, candidate in enumerate(candidates) if not candidate.failed_retention]
    if not kept:
        failed = "; ".join(f"{c.scale.name}: {', '.join(c.failed_retention)}" for c in candidates)
        reason = (
            "no scale is shown to keep all retention tasks within their margins on half A "
            f"({failed})"
        )
        return ScaleChoice(None, reason, gains)

    def preference(n: int) -> tuple[float, float, bool]:
        # Of equal gains the weaker scale is preferred; of equally strong ones the uniform scale.
        scale = candidates[n].scale
        return round(gains[n].value, GAIN_DECIMALS), -math.fsum(scale.parts), scale.is_uniform

    best = max(kept, key=preference)
    if round(gains[best].value, GAIN_DECIMALS) <= 0:
        names = ", ".join(candidates[n].scale.name for n in kept)
        reason = f"none of the scales that keep retention ({names}) gains on half A"
        return ScaleChoice(None, reason, gains)
    reason = (
        f"{len(kept)} of {len(candidates)} scales are shown to keep retention on half A; of these, "
        f"{candidates[best].scale.name} gains most"
    )
    return ScaleChoice(best, reason, gains)


def standardized_gains(candidates: Sequence[Candidate]) -> tuple[Gain, ...]:
    """Return the gain of each candidate: the mean standardized difference over the gain tasks.

    The difference on a task is divided by the half-width of its interval, averaged over all
    candidates. The divisor is the same for each candidate, so that a single task ranks by its
    difference, and neither the unit nor the noise of a task adds to its weight. Limits are the
    means of the tasks' limits, which is no narrower than the interval of the mean.
    """
    values = []
    # (candidates, 3): difference and limits, for each task.
    for tasks in zip(*([t for _, t in c.tasks("gain")] for c in candidates), strict=True):
        limits = np.array([(t.interval.delta, t.interval.low, t.interval.high) for t in tasks])
        half_widths = (limits[:, 2] - limits[:, 1]) / 2
        usable = half_widths[np.isfinite(half_widths) & (half_widths > 0)]
        # A task without spread has no unit for differences, and adds nothing.
        values.append(limits / usable.mean() if usable.size else np.zeros_like(limits))
    return tuple(Gain(*map(float, row)) for row in np.mean(values, axis=0))


def most_forgotten_task(candidate: Candidate) -> tuple[str, TaskVerdict]:
    """Return the retention task whose pessimistic limit uses the largest share of its margin."""
    return max(candidate.tasks("retention"), key=lambda one: one[1].margin_used[2])
