"""View models of the report templates: the verdict with formatted values, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lora_kit.evaluation.diagnostics import ClassScores, SecondaryMetric, Slice
from lora_kit.evaluation.reporting.answers import decision_confidence, task_differences
from lora_kit.evaluation.reporting.flips import MAX_SHOWN, Flip, TaskFlips
from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import (
    FormattedComparison,
    Notation,
    format_percent,
    item_unit,
)
from lora_kit.evaluation.reporting.reliability import Dot, reliability_dots
from lora_kit.evaluation.reporting.wrong_items import WrongClass
from lora_kit.evaluation.scores import ITEM_UNITS
from lora_kit.evaluation.task_verdict import BaselineComparison, FileTask, TaskVerdict
from lora_kit.evaluation.verdict import SuiteVerdict, Verdict
from lora_kit.statistics.calibration import CalibrationComparison
from lora_kit.statistics.decisions import Interval
from lora_kit.statistics.labels import ClassScore

MAX_LARGEST = 10
"""Maximum number of flips per task and direction that are shown if scores are not 0 or 1."""

MAX_SLICES = 8
"""Maximum number of slices of a task that are shown unfolded, unless more are alarms."""

T = TypeVar("T")


@dataclass(frozen=True)
class TableRow(Generic[T]):
    """Table row: a result with its formatted values."""

    result: T
    values: FormattedComparison


@dataclass(frozen=True)
class FlipsReport:
    """Flips of one task in one direction.

    Attributes:
        shown: first flips if scores are 0 or 1, otherwise the largest ones, in order of size.
        total: number of all flips.
    """

    shown: tuple[Flip, ...]
    total: int


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration errors and dots of the reliability diagram, for both arms."""

    ece: FormattedComparison
    brier: FormattedComparison
    base: tuple[Dot, ...]
    adapter: tuple[Dot, ...]


@dataclass(frozen=True)
class ClassRow:
    """Scores of both arms on one class."""

    base: ClassScore
    adapter: ClassScore

    @property
    def has_probabilities(self) -> bool:
        """True if average precision is known of both arms."""
        return None not in (self.base.average_precision, self.adapter.average_precision)


@dataclass(frozen=True)
class TaskReport:
    """A task with its formatted values, diagnostics and flips.

    Attributes:
        name: name of the task, with its suite if another suite has a task of that name.
        suite: name of the suite.
        confidence: confidence level of the two-sided intervals, such as 95%.
        difference: difference of the adapter from the base.
        merged: difference of the merged model from the base; `None` without a merged model.
        files: differences of the exported files from the base.
        baselines: comparisons of the adapter with the baselines.
        measures: secondary metrics, by their labels.
        slices: slices of the task, alarms first, then the largest loss.
        first_slices: number of slices that are not folded away.
        calibration: calibration of both arms; `None` for tasks without choices.
        classes: scores of each class, the lowest change of F1 first.
        class_means: scores of all classes, with the means; `None` without classes.
        wrong: items that the adapter got wrong, by class.
        drift: KL divergence of the adapter from the base; `None` if it was not measured.
        items: number format of single items' scores.
        item_unit: unit of single items' scores.
        has_outputs: true if an arm has outputs.
        binary: true if every score is 0 or 1.
        net: sentence that relates the numbers of won and lost items to the difference; empty if
            the difference is not their balance.
        lost: lost items.
        won: won items.
    """

    name: str
    suite: str
    confidence: str
    difference: Difference
    merged: FormattedComparison | None
    files: tuple[FileRow, ...]
    baselines: tuple[TableRow[BaselineComparison], ...]
    measures: tuple[TableRow[str], ...]
    slices: tuple[TableRow[Slice], ...]
    first_slices: int
    calibration: CalibrationReport | None
    classes: tuple[ClassRow, ...]
    class_means: ClassScores | None
    wrong: tuple[WrongClass, ...]
    drift: FormattedComparison | None
    items: Notation
    item_unit: str
    has_outputs: bool
    binary: bool
    net: str
    lost: FlipsReport
    won: FlipsReport


@dataclass(frozen=True)
class FileRow:
    """Form in which the model is served, in a table.

    Attributes:
        result: decision on the form.
        values: difference from the base.
        from_adapter: difference from the adapter; `None` without common items.
        control: difference of the base, quantized alike, from the base; `None` without this arm.
    """

    result: FileTask
    values: FormattedComparison
    from_adapter: FormattedComparison | None
    control: FormattedComparison | None


@dataclass(frozen=True)
class SuiteReport:
    """A suite with its tasks.

    Attributes:
        verdict: verdict on the suite.
        confidence: confidence level of the two-sided intervals, such as 95%.
        decision_confidence: confidence level of the decisions, such as 97.5%.
        tasks: tasks of the suite.
        beside: tasks that do not decide.
    """

    verdict: SuiteVerdict
    confidence: str
    decision_confidence: str
    tasks: tuple[TaskReport, ...]
    beside: tuple[TaskReport, ...]


def suite_reports(
    verdict: Verdict, flips: Sequence[TaskFlips], wrong: Sequence[tuple[WrongClass, ...]]
) -> list[SuiteReport]:
    """Return the view models of all suites.

    Args:
        verdict: verdict to report.
        flips: flips of each task, in the verdict's order.
        wrong: wrong items of each task by class, in the same order.
    """
    names = iter(d.name for d in task_differences(verdict))
    changed = zip(flips, wrong, strict=True)
    return [
        SuiteReport(
            suite,
            format_percent(suite.tasks[0].interval.confidence),
            format_percent(decision_confidence(suite)),
            tuple(_task_report(next(names), task, *next(changed)) for task in suite.tasks),
            tuple(_task_report(task.task, task, *next(changed)) for task in suite.beside),
        )
        for suite in verdict.suites
    ]


def _task_report(
    name: str, task: TaskVerdict, flips: TaskFlips, wrong: tuple[WrongClass, ...]
) -> TaskReport:
    unit, merged = item_unit(task), task.merged_interval
    # Binary flips cannot be ranked by size, so as many as the page allows are shown.
    shown = MAX_SHOWN if flips.binary else MAX_LARGEST
    return TaskReport(
        name=name,
        suite=flips.suite,
        confidence=format_percent(task.interval.confidence),
        difference=Difference.of(task.task, task),
        # Only the difference of the merged model is shown, not its score.
        merged=FormattedComparison.of(task.unit, task.base, task.base, merged) if merged else None,
        files=tuple(
            FileRow(
                one,
                FormattedComparison.of(task.unit, task.base, one.mean, one.interval),
                FormattedComparison.of(task.unit, task.adapter, one.mean, one.from_adapter)
                if one.from_adapter
                else None,
                FormattedComparison.of(task.unit, task.base, task.base, one.control)
                if one.control
                else None,
            )
            for one in task.files
        ),
        baselines=tuple(
            TableRow(one, FormattedComparison.of(task.unit, one.mean, task.adapter, one.interval))
            for one in task.baselines
        ),
        measures=tuple(
            TableRow(
                _metric_label(one),
                FormattedComparison.of(one.name, one.base, one.adapter, one.interval),
            )
            for one in task.measures
        ),
        slices=tuple(
            TableRow(one, FormattedComparison.of(unit, one.base, one.adapter, one.interval))
            for one in sorted(task.slices, key=lambda one: (not one.alarm, one.interval.delta))
        ),
        first_slices=max(MAX_SLICES, sum(one.alarm for one in task.slices)),
        calibration=_calibration(task.calibration),
        classes=_classes(task.classes),
        class_means=task.classes,
        wrong=wrong,
        drift=_drift(task.drift.interval) if task.drift else None,
        items=Notation.fit(unit, (task.base, task.adapter), task.interval),
        item_unit=unit,
        has_outputs=flips.has_outputs,
        binary=flips.binary,
        net=_net(task, flips),
        lost=FlipsReport(flips.lost[:shown], flips.lost_items),
        won=FlipsReport(flips.won[:shown], flips.won_items),
    )


def _metric_label(metric: SecondaryMetric) -> str:
    label = metric.name.replace("_", " ")
    return f"{label}, lower is better" if not metric.higher_is_better else label


def _calibration(comparison: CalibrationComparison | None) -> CalibrationReport | None:
    if comparison is None:
        return None
    before, after = comparison.before, comparison.after
    return CalibrationReport(
        FormattedComparison.of("", before.ece, after.ece, comparison.ece),
        FormattedComparison.of("", before.brier, after.brier, comparison.brier),
        reliability_dots(before),
        reliability_dots(after),
    )


def _classes(scores: ClassScores | None) -> tuple[ClassRow, ...]:
    if scores is None:
        return ()
    adapter = {score.label: score for score in scores.adapter.classes}
    rows = [ClassRow(score, adapter[score.label]) for score in scores.base.classes]
    return tuple(sorted(rows, key=lambda row: row.adapter.f1 - row.base.f1))


def _drift(interval: Interval) -> FormattedComparison:
    # Formatted without a sign: a divergence is never negative, though its lower limit may be.
    notation = Notation.fit("nats/token", (interval.delta,), interval)
    low, high = notation.plain(interval.low), notation.plain(interval.high)
    return FormattedComparison("", "", notation.plain(interval.delta), low, high, "nats/token")


def _net(task: TaskVerdict, flips: TaskFlips) -> str:
    """Return a sentence that relates won and lost items to the difference of binary scores.

    Scores such as macro-F1 are excluded: they are not the mean of the items' scores.
    """
    if not flips.binary or task.unit in ITEM_UNITS:
        return ""
    won, lost, items = flips.won_items, flips.lost_items, task.interval.items
    difference = Difference.of("", task)
    unit = f" {difference.unit}" if difference.notation.percent else ""
    net = f"{won - lost:+,}" if won != lost else "0"
    return (
        f"{won:,} won − {lost:,} lost = {net} of {items:,} items, which is the difference of "
        f"{difference.delta}{unit}."
    ).replace("-", "−")
