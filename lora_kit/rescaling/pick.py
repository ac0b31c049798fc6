"""The pick: of the scales that retention allows on half A, the one that gains the most there.

Functions of verdicts, nothing else: intervals, margins and decisions are those of every evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.evaluation.suite import Role
from lora_kit.evaluation.verdict import TaskVerdict, Verdict
from lora_kit.rescaling.strength import AdapterScale

# Gains that differ by less are the same: the order of a sum moves the last digits.
SAME = 9


@dataclass(frozen=True)
class Candidate:
    """A strength and what half A says of it."""

    strength: AdapterScale
    verdict: Verdict

    def tasks(self, role: Role) -> list[tuple[str, TaskVerdict]]:
        """Those of one role, with their suite and name."""
        return [
            (f"{suite.suite}/{task.task}", task)
            for suite in self.verdict.suites
            if suite.role == role
            for task in suite.tasks
        ]

    @property
    def lost(self) -> tuple[str, ...]:
        """Retention tasks that are not shown to be within their margin."""
        return tuple(n for n, task in self.tasks("retention") if task.decision != "PASS")


@dataclass(frozen=True)
class Gain:
    """A candidate's gain over all gain tasks, in halves of their intervals, with limits."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pick:
    """What is taken, and why.

    Attributes:
        chosen: index of the candidate; `None` where none is taken.
        gains: of each candidate, see `gains`.
    """

    chosen: int | None
    why: str
    gains: tuple[Gain, ...]


def pick(candidates: Sequence[Candidate]) -> Pick:
    """Take the strength with the largest gain of those that keep all retention tasks.

    Kept is what the verdict calls PASS: the pessimistic limit clears the margin. Gain is that of
    `gains`; of equal gains the weaker adapter is taken, which changes the model less. The base,
    scale 0, is a candidate too, which keeps everything and gains nothing: a strength that does not
    gain more is not taken.
    """
    found = gains(candidates)
    kept = [n for n, candidate in enumerate(candidates) if not candidate.lost]
    if not kept:
        return Pick(None, _why_none_is_kept(candidates), found)
    best = max(kept, key=lambda n: (round(found[n].value, SAME), *_weaker(candidates[n].strength)))
    name = candidates[best].strength.name
    if round(found[best].value, SAME) <= 0:
        names = ", ".join(candidates[n].strength.name for n in kept)
        return Pick(None, f"of what retention allows ({names}), nothing gains on half A", found)
    why = (
        f"of the {len(candidates)} scales {len(kept)} keep retention on half A for sure, of which "
    )
    return Pick(best, f"{why}{name} gains the most", found)


def _weaker(strength: AdapterScale) -> tuple[float, bool]:
    """Higher for the weaker; of two as strong, for the one that is the same everywhere."""
    return -math.fsum(strength.parts), strength.is_whole


def _why_none_is_kept(candidates: Sequence[Candidate]) -> str:
    lines = "; ".join(f"{c.strength.name}: {', '.join(c.lost)}" for c in candidates)
    return f"no scale is shown to keep all retention tasks within their margins on half A ({lines})"


def gains(candidates: Sequence[Candidate]) -> tuple[Gain, ...]:
    """The gain of each candidate: the mean over the gain tasks of their standardised differences.

    A task's difference is divided by half of its interval, the mean of that over all candidates:
    the same for each, so that one task alone ranks by its difference, and neither a task's unit nor
    its noise buys it weight. Limits are the means of the tasks' limits, no narrower than the mean's
    own.
    """
    values = []
    # (candidates, 3): difference and limits, for each task.
    for tasks in zip(*([t for _, t in c.tasks("gain")] for c in candidates), strict=True):
        of = np.array([(t.interval.delta, t.interval.low, t.interval.high) for t in tasks])
        halves = (of[:, 2] - of[:, 1]) / 2
        usable = halves[np.isfinite(halves) & (halves > 0)]
        # Without a spread there is nothing to measure a difference by.
        values.append(of / usable.mean() if usable.size else np.zeros_like(of))
    return tuple(Gain(*map(float, row)) for row in np.mean(values, axis=0))


def most_forgotten(candidate: Candidate) -> tuple[str, TaskVerdict]:
    """The retention task that uses up the most of its margin at its pessimistic limit."""
    return max(
        candidate.tasks("retention"), key=lambda one: -one[1].interval.low / (one[1].margin or 1.0)
    )
