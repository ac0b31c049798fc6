"""Tasks of a verdict as the model card shows them, with formatted values."""

from __future__ import annotations

from dataclasses import dataclass

from lora_kit.evaluation.reporting.notation import FormattedComparison, Notation, format_p_value
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import SuiteVerdict, Verdict
from lora_kit.statistics.decisions import Interval


@dataclass(frozen=True)
class CardTask:
    """Task of a model card.

    Attributes:
        task: the task of the verdict.
        adapter: comparison of the adapter with the base.
        merged_interval: interval of the merged model's difference from the base.
        merged: comparison of the merged model with the base.
        merged_score: mean score of the merged model.
        merged_base: mean score of the base on the items of that score.
        detectable: half width of the interval with its unit; smaller differences are not
            detectable.
        margin: margin of a retention task with its unit; empty for a gain task.
        drift: KL from the base in nats per token, with its interval; empty if not measured.
    """

    suite: str
    role: str
    task: TaskVerdict
    merged_interval: Interval
    adapter: FormattedComparison
    merged: FormattedComparison
    merged_score: float
    merged_base: float
    detectable: str
    margin: str
    drift: str

    @property
    def name(self) -> str:
        """Name of the task with its suite, `suite/task`."""
        return f"{self.suite}/{self.task.task}"

    @property
    def loss(self) -> str:
        """Significance of a loss in words; empty if the mean is not worse than the base's."""
        interval = self.task.interval
        if interval.delta >= 0:
            return ""
        if self.task.alarm:
            return "significant loss"
        return "loss, interval below zero" if interval.high < 0 else "loss, not significant"


def card_tasks(verdict: Verdict) -> list[CardTask]:
    """Return all tasks of a verdict, in order.

    Raises:
        ValueError: if the merged model was not evaluated on a task.
    """
    return [_card_task(verdict, suite, task) for suite, task in verdict.tasks]


def _card_task(verdict: Verdict, suite: SuiteVerdict, task: TaskVerdict) -> CardTask:
    base, unit, adapter, merged = task.base, task.unit, task.interval, task.merged_interval
    if merged is None:
        raise ValueError(f"{suite.suite}/{task.task}: the merged model was not evaluated")
    score, merged_base = _merged_score(verdict, suite, task, merged)
    notation = Notation.of(task)
    suffix = f" {'pp' if notation.percent else unit}"
    half_width = notation.signed((adapter.high - adapter.low) / 2).removeprefix("+")
    margin = ""
    if task.margin is not None:
        margin = notation.signed(task.margin).removeprefix("+") + suffix
    return CardTask(
        suite.suite,
        suite.role,
        task,
        merged,
        FormattedComparison.of(unit, base, task.adapter, adapter, notation),
        FormattedComparison.of(unit, merged_base, score, merged, notation),
        score,
        merged_base,
        half_width + suffix,
        margin,
        _drift(task.drift.interval) if task.drift else "",
    )


def _merged_score(
    verdict: Verdict, suite: SuiteVerdict, task: TaskVerdict, merged: Interval
) -> tuple[float, float]:
    """Return the merged model's mean score and the base's on the same items.

    These may be others than the adapter's: half of the items if the model was selected, and more
    where it took more items to decide.
    """
    if verdict.selection and not verdict.selection.reason:
        mean = verdict.selection.means[f"{suite.suite}/{task.task}"]
    else:
        mean = {one.arm: one.mean for one in task.merges}[verdict.ships or ""]
        if merged.items == task.interval.items:
            return mean, task.base
    return mean, mean - merged.delta if task.higher_is_better else mean + merged.delta


def _drift(interval: Interval) -> str:
    written = FormattedComparison.of("nats", interval.delta, interval.delta, interval)
    return f"{written.delta} ({written.low} to {written.high})".replace("+", "")


def lost_slices(verdict: Verdict) -> list[str]:
    """Describe the slices with a significant loss, one line each."""
    return [
        f"{suite.suite}/{task.task}, {one.field} {one.value}: {one.interval.delta:+.4g} on "
        f"{one.interval.items} items, p {format_p_value(one.adjusted)} after Holm"
        for suite, task in verdict.tasks
        for one in task.slices
        if one.alarm
    ]
