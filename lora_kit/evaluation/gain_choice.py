"""Choice between adapters by their verdicts: the largest gain of those that keep retention.

Functions of verdicts only: intervals, margins and decisions are those of every evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.evaluation.suite import SuiteRole
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.statistics.decisions import Interval

# Decimals to which gains are compared: the order of a sum changes the last digits.
GAIN_DECIMALS = 9


@dataclass(frozen=True)
class Gain:
    """Gain over all gain tasks, in half-widths of their intervals.

    Attributes:
        value: mean standardized difference.
        low: lower limit.
        high: upper limit.
    """

    value: float
    low: float
    high: float


def role_tasks(verdict: Verdict, role: SuiteRole) -> list[tuple[str, TaskVerdict]]:
    """Return the tasks of one role, as (suite/task, verdict)."""
    return [
        (f"{suite.suite}/{task.task}", task) for suite, task in verdict.tasks if suite.role == role
    ]


def failed_retention(verdict: Verdict) -> tuple[str, ...]:
    """Return the names of the retention tasks that are not shown to be within their margin."""
    return tuple(name for name, task in role_tasks(verdict, "retention") if task.decision != "PASS")


def most_forgotten_task(verdict: Verdict) -> tuple[str, TaskVerdict]:
    """Return the retention task whose pessimistic limit uses the largest share of its margin."""
    return max(role_tasks(verdict, "retention"), key=lambda one: one[1].margin_used[2])


def standardized_gains(verdicts: Sequence[Verdict]) -> tuple[Gain, ...]:
    """Return the gain of each verdict: the mean standardized difference over the gain tasks.

    The difference on a task is divided by the half-width of its interval, averaged over all
    verdicts. The divisor is the same for each, so that a single task ranks by its difference, and
    neither the unit nor the noise of a task adds to its weight. Limits are the means of the tasks'
    limits, which is no narrower than the interval of the mean.
    """
    return standardized([[t.interval for _, t in role_tasks(one, "gain")] for one in verdicts])


def standardized(intervals: Sequence[Sequence[Interval]]) -> tuple[Gain, ...]:
    """Return the gain of each adapter, as `standardized_gains` does of verdicts.

    Args:
        intervals: difference from the base on each gain task, by adapter.
    """
    values = []
    # (adapters, 3): difference and limits, for each task.
    for tasks in zip(*intervals, strict=True):
        limits = np.array([(one.delta, one.low, one.high) for one in tasks])
        half_widths = (limits[:, 2] - limits[:, 1]) / 2
        usable = half_widths[np.isfinite(half_widths) & (half_widths > 0)]
        # A task without spread has no unit for differences, and adds nothing.
        values.append(limits / usable.mean() if usable.size else np.zeros_like(limits))
    return tuple(Gain(*map(float, row)) for row in np.mean(values, axis=0))
