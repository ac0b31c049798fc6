"""What the suites of a recipe can show, before anything is spent on training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.evaluation.tasks import chosen_clusters
from lora_kit.statistics.power import (
    design_effect,
    items_to_retain,
    items_to_show_gain,
    smallest_gain,
    smallest_margin,
)

# Items of one cluster are taken to be as alike as pupils of one class, until they are measured
# (intraclass correlations of 0.1 to 0.25: Hedges & Hedberg 2007).
ICC = 0.2


@dataclass(frozen=True)
class TaskPower:
    """What one task can show, with a power of 0.8.

    Attributes:
        items: `None` where they cannot be counted without fetching them.
        clusters: of items that are not independent.
        assumed: the spread of the differences that this stands on; empty where none is known.
        smallest: retention: the smallest margin that an adapter without a loss keeps within; gain:
            the smallest gain that is shown; in the score's unit.
        wanted: the margin, or the effect that is hoped for.
        needed: items that it takes for that.
    """

    task: str
    unit: str
    items: int | None
    clusters: int | None
    assumed: str
    smallest: float | None
    wanted: float | None
    needed: int | None


@dataclass(frozen=True)
class SuitePower:
    """What a suite can show."""

    suite: str
    role: str
    tasks: tuple[TaskPower, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


# Of two that are compared and know nothing of one another, on two choices.
UNRELATED_FLIPS = 0.5


def detectable(suites: Sequence[Suite], unrelated: bool = False) -> tuple[SuitePower, ...]:
    """What each task of the suites can show.

    Args:
        suites: of the evaluation.
        unrelated: whether the adapter is compared with something that is not its own backbone, as
            a head is: then as many items flip as by chance.
    """
    least = UNRELATED_FLIPS if unrelated else 0.0
    return tuple(
        SuitePower(
            suite.name, suite.role, tuple(_task_power(suite, task, least) for task in suite.tasks)
        )
        for suite in suites
    )


def _task_power(suite: Suite, task: TaskSpec, least_flips: float) -> TaskPower:
    clusters = chosen_clusters(task, suite.seed)
    wanted = task.margin if suite.role == "retention" else task.effect
    known: dict[str, Any] = {"task": task.name, "unit": task.unit, "wanted": wanted}
    count = len(clusters) if clusters is not None else task.limit
    different = len(set(clusters)) if clusters is not None else count
    spread, assumed = _spread(task, least_flips)
    if not spread or count is None or different is None:
        return TaskPower(
            items=count, clusters=different, assumed=assumed, smallest=None, needed=None, **known
        )
    effect = design_effect(count / different, ICC)
    independent = max(int(count / effect), 1)
    if suite.role == "retention":
        smallest = smallest_margin(independent, suite.alpha, **spread)
        needed = items_to_retain(wanted, suite.alpha, **spread) if wanted else None
    else:
        smallest = smallest_gain(independent, suite.alpha, **spread)
        reachable = wanted is not None and wanted <= spread.get("flip_rate", wanted)
        needed = items_to_show_gain(wanted, suite.alpha, **spread) if wanted and reachable else None
    return TaskPower(
        items=count,
        clusters=different,
        assumed=assumed + (f", {different} clusters" if different < count else ""),
        smallest=smallest,
        needed=round(needed * effect) if needed is not None else None,
        **known,
    )


def _spread(task: TaskSpec, least_flips: float) -> tuple[dict[str, float], str]:
    """The spread of the differences that the suite expects, and in words."""
    if task.score == "macro_f1":
        return {}, ""
    if task.is_binary or (task.kind == "lm_eval" and task.expected_deviation is None):
        flips = max(task.expected_flips, least_flips)
        return {"flip_rate": flips}, f"{flips:.0%} flips"
    if task.expected_deviation is None:
        return {}, ""
    deviation = task.expected_deviation
    return {"deviation": deviation}, f"deviation of {deviation:g} an item"
