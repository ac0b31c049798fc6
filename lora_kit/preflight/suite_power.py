"""Statistical power of the suites of a recipe, computed before training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lora_kit.evaluation.stopping import FIXED, Stopping
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import selected_clusters
from lora_kit.statistics.looks import Looks
from lora_kit.statistics.power import (
    Deviation,
    FlipRate,
    Spread,
    design_effect,
    items_to_retain,
    items_to_show_gain,
    smallest_gain,
    smallest_margin,
)

# Assumed intraclass correlation of a cluster's items, until it is measured: that of pupils of one
# class, 0.1 to 0.25 (Hedges & Hedberg 2007).
ICC = 0.2
# Flip rate of two independent answers to a question with two choices.
UNRELATED_FLIPS = 0.5


@dataclass(frozen=True)
class TaskPower:
    """Smallest effect that one task detects with a power of 0.8.

    Attributes:
        items: number of items; `None` if counting requires a download.
        clusters: number of clusters of dependent items.
        assumed: assumed spread of the differences, in words; empty if none is known.
        smallest: on a retention suite, the smallest margin that an adapter without a loss passes;
            on a gain suite, the smallest gain that passes; in the score's unit.
        target: margin (retention) or expected effect (gain) of the suite, in the score's unit.
        needed: number of items needed for `target`.
        asked: mean number of items that are asked until the task ends, by the true difference:
            none, a loss of the margin (retention), the expected gain; empty if all are asked.
    """

    task: str
    unit: str
    items: int | None
    clusters: int | None
    assumed: str
    smallest: float | None
    target: float | None
    needed: int | None
    asked: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SuitePower:
    """Power of each task of a suite."""

    suite: str
    role: str
    tasks: tuple[TaskPower, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the power as JSON values."""
        return asdict(self)


def compute_suite_power(
    suites: Sequence[Suite], unrelated: bool = False, stopping: Stopping = FIXED
) -> tuple[SuitePower, ...]:
    """Compute the power of each task of the suites.

    Args:
        suites: suites of the evaluation.
        unrelated: if true, the adapter is compared with something other than its own backbone,
            such as a classification head, and at least as many items flip as by chance.
        stopping: cut of the items into looks.
    """
    min_flips = UNRELATED_FLIPS if unrelated else 0.0
    return tuple(
        SuitePower(
            suite.name,
            suite.role,
            tuple(_task_power(suite, task, min_flips, stopping) for task in suite.tasks),
        )
        for suite in suites
    )


def _task_power(suite: Suite, task: TaskSpec, min_flips: float, stopping: Stopping) -> TaskPower:
    clusters = selected_clusters(task, suite.seed)
    target = task.margin if suite.role == "retention" else task.effect
    known: dict[str, Any] = {"task": task.name, "unit": task.unit, "target": target}
    count = len(clusters) if clusters is not None else task.limit
    cluster_count = len(set(clusters)) if clusters is not None else count
    spread, assumed = _spread(task, min_flips)
    if spread is None or count is None or cluster_count is None:
        return TaskPower(
            items=count,
            clusters=cluster_count,
            assumed=assumed,
            smallest=None,
            needed=None,
            **known,
        )
    effect = design_effect(count / cluster_count, ICC)
    independent = max(int(count / effect), 1)
    if suite.role == "retention":
        smallest = smallest_margin(independent, suite.alpha, spread)
        needed = items_to_retain(target, suite.alpha, spread) if target else None
    else:
        smallest = smallest_gain(independent, suite.alpha, spread)
        reachable = target is not None and (isinstance(spread, Deviation) or target <= spread.share)
        needed = items_to_show_gain(target, suite.alpha, spread) if target and reachable else None
    return TaskPower(
        items=count,
        clusters=cluster_count,
        assumed=assumed + (f", {cluster_count} clusters" if cluster_count < count else ""),
        smallest=smallest,
        needed=round(needed * effect) if needed is not None else None,
        asked=_expected_items(
            count, stopping.plan(cluster_count, suite, task), independent, spread, task
        ),
        **known,
    )


def _expected_items(
    count: int, looks: Looks, independent: int, spread: Spread, task: TaskSpec
) -> dict[str, int]:
    """Return the mean number of items that are asked, by the true difference.

    Args:
        count: number of items.
        looks: looks at the task.
        independent: number of independent items that the items count as.
        spread: expected spread of the differences.
        task: the task, with its margin or its expected gain.
    """
    if len(looks) == 1:
        return {}
    if task.margin is not None:
        distances = {"no change": task.margin, "a loss of the margin": 0.0}
    else:
        distances = {"no change": 0.0} | ({"the expected gain": task.effect} if task.effect else {})
    found = {}
    for name, distance in distances.items():
        if isinstance(spread, Deviation):
            variance = spread.value**2
        else:
            # A difference of -1, 0 or 1 on a share of the items.
            variance = spread.share - (distance if task.margin is None else 0.0) ** 2
        if variance > 0:
            effect = distance / math.sqrt(variance / independent)
            found[name] = round(looks.expected_share(effect) * count)
    return found


def _spread(task: TaskSpec, min_flips: float) -> tuple[Spread | None, str]:
    """Return the expected spread of the differences, and in words; `None` if it is unknown."""
    if task.of_all_items:
        return None, ""
    if task.is_binary or (task.kind == "lm_eval" and task.expected_deviation is None):
        flips = max(task.expected_flips, min_flips)
        return FlipRate(flips), f"{flips:.0%} of items flip"
    if task.expected_deviation is None:
        return None, ""
    deviation = task.expected_deviation
    return Deviation(deviation), f"standard deviation {deviation:g} per item"
