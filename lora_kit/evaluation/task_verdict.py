"""Verdict on one task: the decision on the adapter and on what ships, with the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from lora_kit.evaluation.diagnostics import ClassScores, Drift, SecondaryMetric, Slice
from lora_kit.evaluation.stopping import EndReason
from lora_kit.recipe.sections import FEWSHOT, PLAIN, PROBE, RETRIEVAL, SCRATCH
from lora_kit.statistics.calibration import CalibrationComparison
from lora_kit.statistics.decisions import Decision, Interval
from lora_kit.statistics.judged_preference import JudgeAccuracy

# Names and descriptions of the baselines that need no adapter. An adapter that does not beat them
# was not worth its training.
BASELINES = {
    FEWSHOT: ("few-shot prompting", "the base with a few examples in its prompt"),
    RETRIEVAL: (
        "retrieved answers",
        "repeating the answer of the most similar training example, or for embeddings comparing "
        "texts by TF-IDF",
    ),
    PROBE: ("a linear probe", "a linear probe of the frozen backbone, without an adapter"),
    SCRATCH: ("training from scratch", "the same training on weights that were never pretrained"),
    PLAIN: ("the rows as they are", "as many steps without added or weighed rows"),
}


@dataclass(frozen=True)
class TaskLooks:
    """Path of a task: until where its items were asked, and why no further.

    Attributes:
        ended_at: number of the look at which the task ended for the adapter.
        planned: number of looks that were planned.
        level: one-sided level of that look.
        asked: number of items that were asked by then.
        items: number of items of the task.
        reason: `decided`; `futile`: with all items, a decision was improbable; `last look`: all
            items were asked.
        merged_at: number of the look until which merged models were asked; `None` without one.
    """

    ended_at: int
    planned: int
    level: float
    asked: int
    items: int
    reason: EndReason
    merged_at: int | None

    @property
    def left_out(self) -> int:
        """Number of items that the adapter was not asked."""
        return self.items - self.asked

    @property
    def sentence(self) -> str:
        """Path in words, without a period; empty if all items were asked at once."""
        if self.planned == 1:
            return ""
        at = f"look {self.ended_at} of {self.planned}"
        left = f"; {self.left_out:,} of {self.items:,} items were not asked"
        if self.reason == "decided":
            text = f"decided at {at}{left}"
        elif self.reason == "futile":
            text = f"given up at {at}, since a decision was improbable with all items{left}"
        else:
            text = f"asked until {at}"
        if self.merged_at is not None and self.merged_at > self.ended_at:
            text += "; the merged model was asked all items"
        return text


@dataclass(frozen=True)
class BaselineComparison:
    """Comparison of the adapter with a baseline.

    Attributes:
        arm: arm of the baseline.
        mean: mean score of the baseline.
        interval: interval of the difference, positive where the adapter is better.
        p: two-sided p-value of no difference.
        decision: PASS if the adapter is significantly better, FAIL if the baseline is.
    """

    arm: str
    mean: float
    interval: Interval
    p: float
    decision: Decision


@dataclass(frozen=True)
class MergedTask:
    """Comparison of a merged model with the base.

    Attributes:
        mean: mean score of the merged model.
        interval: interval of the difference, positive where the merged model is better.
        lead: interval of the paired difference from the first merged model, positive where this
            one is better; `None` for the first.
        lead_p: two-sided p-value of no difference from the first merged model.
    """

    arm: str
    decision: Decision
    mean: float
    interval: Interval
    lead: Interval | None
    lead_p: float | None


@dataclass(frozen=True)
class FileTask:
    """Decision on a form in which the model is served, compared with the base as the adapter is.

    Attributes:
        arm: kind and name of a file or a served model, such as `gguf=model.gguf`, or `nf4`.
        reason: reason for a decision other than the one that the interval implies; else empty.
        mean: mean score of the file.
        interval: interval of the difference, positive where the file is better.
        p: p-value of the deciding test.
        missing: number of items without a score in one of the arms.
        from_adapter: interval of the paired difference from the adapter, positive where the file
            is better: the cost of the format alone. `None` if no item has a score in both.
        control: interval of the difference of the base, quantized alike, from the base: the cost
            of the quantization without the adapter. `None` without such an arm.
    """

    arm: str
    decision: Decision
    reason: str
    mean: float
    interval: Interval
    p: float
    missing: int
    from_adapter: Interval | None
    control: Interval | None = None


@dataclass(frozen=True)
class JudgeReliability:
    """Judge of a task: who it is, and how far its preferences can be trusted.

    Attributes:
        judge: name of the model.
        preferred: mean judged score of the adapter, as the judge gave it.
        agrees: share of the items on which both orders of the answers have the same result.
        unread: share of the replies that say nothing, which count as ties.
        accuracy: agreement with labelled pairs; `None` for a judge that is not calibrated.
    """

    judge: str
    preferred: float
    agrees: float
    unread: float
    accuracy: JudgeAccuracy | None

    @property
    def sentence(self) -> str:
        """Description in words, without a period."""
        text = (
            f"judged by {self.judge}, in both orders, which agree on {self.agrees:.0%} of the "
            f"items; it prefers the adapter's answer on {self.preferred:.1%}, ties half"
        )
        if self.unread:
            text += f"; {self.unread:.1%} of its replies say nothing and count as ties"
        found = self.accuracy
        if found is None:
            return f"{text}. It is not calibrated, so that no interval holds for what people prefer"
        if found.symmetric:
            measured = f"{found.sensitivity:.0%} of {found.sensitive_pairs} labels"
        else:
            measured = (
                f"{found.sensitivity:.0%} of {found.sensitive_pairs} labels for the adapter and "
                f"{found.specificity:.0%} of {found.specific_pairs} for the base"
            )
        return (
            f"{text}. It agrees with {measured}; score, difference and interval are corrected for "
            "that"
        )


@dataclass(frozen=True)
class TaskVerdict:
    """Decision on one task: mean scores of both arms, and their difference with its interval.

    Attributes:
        decision: decision on the adapter.
        reason: reason for a decision other than the one that the interval implies; else empty.
        base: mean score of the base.
        adapter: mean score of the adapter.
        interval: interval of the difference, positive where the adapter is better.
        p: p-value of the deciding test. Gain: two-sided, of no difference. Retention: one-sided,
            of a loss of at least the margin.
        method: description of the interval and the test.
        margin: largest tolerated loss, in the unit of the score; `None` for gain.
        missing: number of items without a score in one of the arms, left out of the comparison;
            a task on which the adapter lacks a score that the base has does not pass.
        won: number of items that only the adapter got right (for other scores: got better).
        lost: number of items that only the base got right (for other scores: got worse).
        items_needed: approximate number of items that would decide an undecided task.
        loss_p: one-sided p-value of no loss.
        loss_adjusted: `loss_p` after Holm, over all tasks and slices.
        alarm: if true, the loss is significant, even if it is within the margin.
        merged: decision on the merged model that is released, if one is an arm; of several, it is
            proved on items that the selection did not use.
        merged_interval: interval of that model's difference from the base, on the same items.
        merges: comparisons of all merged models that are arms; of several, on the items that one
            was selected on.
        baselines: comparisons with the baselines that are arms.
        measures: secondary metrics of the same items.
        looks: path of the task.
        files: decisions on the exported files that are arms.
        judged: judge of the task; `None` for a task without one.
    """

    task: str
    unit: str
    higher_is_better: bool
    decision: Decision
    reason: str
    base: float
    adapter: float
    interval: Interval
    p: float
    method: str
    margin: float | None
    rationale: str
    missing: int
    won: int
    lost: int
    items_needed: int | None
    loss_p: float
    loss_adjusted: float
    alarm: bool
    merged: Decision | None
    merged_interval: Interval | None
    merges: tuple[MergedTask, ...]
    baselines: tuple[BaselineComparison, ...]
    measures: tuple[SecondaryMetric, ...]
    slices: tuple[Slice, ...]
    calibration: CalibrationComparison | None
    classes: ClassScores | None
    drift: Drift | None
    looks: TaskLooks
    files: tuple[FileTask, ...] = ()
    judged: JudgeReliability | None = None

    @property
    def threshold(self) -> float:
        """Value that the interval is compared with: zero, or minus the margin."""
        return -(self.margin or 0.0)

    @property
    def margin_used(self) -> tuple[float, float, float]:
        """Shares of the margin used by the difference, its best case and its worst case."""
        margin, interval = self.margin or 1.0, self.interval
        return -interval.delta / margin, -interval.high / margin, -interval.low / margin
