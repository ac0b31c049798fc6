"""What the templates print: the verdict with its numbers written out, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lora_kit.evaluation.facets import LOWER_IS_BETTER, Classes, Measure, Slice
from lora_kit.evaluation.reporting.answers import differences, sureness
from lora_kit.evaluation.reporting.flips import SHOWN, Flip, TaskFlips
from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import Notation, Numbers, item_unit, percent
from lora_kit.evaluation.reporting.reliability import Dot, dots
from lora_kit.evaluation.verdict import BaselineComparison, SuiteVerdict, TaskVerdict, Verdict
from lora_kit.statistics.calibration import CalibrationComparison
from lora_kit.statistics.decisions import Interval
from lora_kit.statistics.labels import ClassScore

LARGEST = 10
"""Flips that are shown of a task whose scores are not 0 or 1, in each direction."""

SLICES = 8
"""Slices that are shown of a task before the rest is folded away, unless more are alarms."""

T = TypeVar("T")


@dataclass(frozen=True)
class Row(Generic[T]):
    """Something measured, with its numbers as they are written."""

    of: T
    numbers: Numbers


@dataclass(frozen=True)
class FlipsView:
    """Flips of one task in one direction.

    Attributes:
        shown: the first where scores are 0 or 1, otherwise the largest, in order of size.
        total: how many there are.
    """

    shown: tuple[Flip, ...]
    total: int


@dataclass(frozen=True)
class CalibrationView:
    """Calibration errors and the points of the reliability diagram, of both arms."""

    ece: Numbers
    brier: Numbers
    base: tuple[Dot, ...]
    adapter: tuple[Dot, ...]


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class in both arms."""

    base: ClassScore
    adapter: ClassScore


@dataclass(frozen=True)
class TaskView:
    """A task with its numbers, its facets and its flips.

    Attributes:
        name: in the whole report, told apart from a task of that name in another suite.
        confidence: of its two-sided intervals, such as 95%.
        merged: the merged model's difference against the base.
        measures: of each its words, and its numbers.
        slices: alarms first, then the worst.
        first_slices: how many of them are not folded away.
        classes: the one whose F1 got worst first.
        drift: its KL, with its limits.
        items: how scores of single items are written.
        item_unit: what they are measured in.
        sum: that won and lost add up to the difference; empty where they need not.
    """

    name: str
    suite: str
    confidence: str
    numbers: Difference
    merged: Numbers | None
    rivals: tuple[Row[BaselineComparison], ...]
    measures: tuple[Row[str], ...]
    slices: tuple[Row[Slice], ...]
    first_slices: int
    calibration: CalibrationView | None
    classes: tuple[ClassRow, ...]
    drift: Numbers | None
    items: Notation
    item_unit: str
    has_outputs: bool
    right_or_wrong: bool
    sum: str
    lost: FlipsView
    won: FlipsView


@dataclass(frozen=True)
class SuiteView:
    """A suite with its tasks.

    Attributes:
        confidence: of the two-sided intervals, in percent.
        sure: of the decisions, in percent.
    """

    verdict: SuiteVerdict
    confidence: str
    sure: str
    tasks: tuple[TaskView, ...]


def suite_views(verdict: Verdict, flips: Sequence[TaskFlips]) -> list[SuiteView]:
    """Of all suites; `flips` are those of their tasks, in order."""
    names = iter(d.name for d in differences(verdict))
    of_tasks = iter(flips)
    return [
        SuiteView(
            suite,
            percent(suite.tasks[0].interval.confidence),
            percent(sureness(suite)),
            tuple(_task_view(next(names), task, next(of_tasks)) for task in suite.tasks),
        )
        for suite in verdict.suites
    ]


def _task_view(name: str, task: TaskVerdict, flips: TaskFlips) -> TaskView:
    unit = item_unit(task)
    # As many as a page bears where an item is right or wrong: their number alone says little.
    limit = SHOWN if flips.right_or_wrong else LARGEST
    return TaskView(
        name=name,
        suite=flips.suite,
        confidence=percent(task.interval.confidence),
        numbers=Difference.of(task.task, task),
        merged=_only_difference(task.unit, task.merged_interval, task.base),
        rivals=tuple(
            Row(rival, Numbers.of(task.unit, rival.mean, task.adapter, rival.interval))
            for rival in task.rivals
        ),
        measures=tuple(
            Row(_words(one), Numbers.of(one.name, one.base, one.adapter, one.interval))
            for one in task.measures
        ),
        slices=tuple(
            Row(one, Numbers.of(unit, one.base, one.adapter, one.interval))
            for one in sorted(task.slices, key=lambda one: (not one.alarm, one.interval.delta))
        ),
        first_slices=max(SLICES, sum(one.alarm for one in task.slices)),
        calibration=_calibration(task.calibration),
        classes=_classes(task.classes),
        drift=_drift(task.drift.interval) if task.drift else None,
        items=Notation.fit(unit, (task.base, task.adapter), task.interval),
        item_unit=unit,
        has_outputs=flips.has_outputs,
        right_or_wrong=flips.right_or_wrong,
        sum=_sum(task, flips),
        lost=FlipsView(flips.lost[:limit], flips.lost_items),
        won=FlipsView(flips.won[:limit], flips.won_items),
    )


def _only_difference(unit: str, interval: Interval | None, base: float) -> Numbers | None:
    return Numbers.of(unit, base, base, interval) if interval else None


def _words(measure: Measure) -> str:
    words = measure.name.replace("_", " ")
    return f"{words}, lower is better" if measure.name in LOWER_IS_BETTER else words


def _calibration(found: CalibrationComparison | None) -> CalibrationView | None:
    if found is None:
        return None
    return CalibrationView(
        Numbers.of("", found.before.ece, found.after.ece, found.ece),
        Numbers.of("", found.before.brier, found.after.brier, found.brier),
        dots(found.before),
        dots(found.after),
    )


def _classes(found: Classes | None) -> tuple[ClassRow, ...]:
    if found is None:
        return ()
    adapter = {score.label: score for score in found.adapter.classes}
    rows = [ClassRow(score, adapter[score.label]) for score in found.base.classes]
    return tuple(sorted(rows, key=lambda row: row.adapter.f1 - row.base.f1))


def _drift(interval: Interval) -> Numbers:
    """A divergence has no sign, though its lower limit may."""
    notation = Notation.fit("nats/token", (interval.delta,), interval)
    low, high = notation.plain(interval.low), notation.plain(interval.high)
    return Numbers("", "", notation.plain(interval.delta), low, high, "nats/token")


def _sum(task: TaskVerdict, flips: TaskFlips) -> str:
    """Of scores of 0 and 1 whose mean is the task's: won less lost is the difference, in items."""
    if not flips.right_or_wrong or task.unit == "macro-F1":
        return ""
    won, lost, items = flips.won_items, flips.lost_items, task.interval.items
    of = Difference.of("", task)
    unit = f" {of.unit}" if of.notation.percent else ""
    net = f"{won - lost:+,}" if won != lost else "0"
    return (
        f"{won:,} won − {lost:,} lost = {net} of {items:,} items: the difference of "
        f"{of.delta}{unit}."
    ).replace("-", "−")
