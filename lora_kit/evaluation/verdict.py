"""The verdict: PASS, FAIL or INCONCLUSIVE for each task, suite and overall, and its evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lora_kit.evaluation.facets import Classes, Drift, Measure, Slice
from lora_kit.evaluation.suite import Role
from lora_kit.runtime.files import finite
from lora_kit.statistics.calibration import CalibrationComparison
from lora_kit.statistics.decisions import Decision, Interval

# Cheaper ways to the same end; an adapter that does not beat them was not worth its training.
WAYS = {
    "fewshot": "the base with a few examples in its prompt",
    "retrieval": "repeating the answer of the most similar training example",
    "probe": "a linear probe of the frozen backbone, without an adapter",
    "scratch": "the same training on weights that were never pretrained",
}


@dataclass(frozen=True)
class BaselineComparison:
    """The adapter against another way to the same end.

    Attributes:
        mean: score of the rival.
        decision: PASS if the adapter is better for sure, FAIL if the rival is.
    """

    arm: str
    mean: float
    interval: Interval
    p: float
    decision: Decision


@dataclass(frozen=True)
class MergedTask:
    """A merged model against the base.

    Attributes:
        mean: score of the merged model.
        interval: of the difference, positive where the merged model is better.
        lead: of the difference from the first merged model, item by item, positive where this one
            is better; `None` for the first.
        lead_p: two-sided, that the two do not differ.
    """

    arm: str
    decision: Decision
    mean: float
    interval: Interval
    lead: Interval | None
    lead_p: float | None


@dataclass(frozen=True)
class TaskVerdict:
    """One task: both arms' means, the oriented difference with its interval, and the decision.

    Attributes:
        decision: of the adapter.
        reason: why it is not what the interval says; empty where it is.
        base: mean score of the base.
        adapter: mean score of the adapter.
        interval: of the difference, positive where the adapter is better.
        p: of the test that decides: two-sided that there is no difference (gain), one-sided that
            the loss is the margin or more (retention).
        method: of interval and test, in words.
        margin: `None` for gain.
        missing: items without a score in one of the arms, left out of the comparison; a task whose
            adapter lacks a score that the base has does not pass.
        won: items that only the adapter got right (for other scores: got better).
        lost: items that only the base got right (for other scores: got worse).
        items_needed: about how many items would decide it, if it is undecided.
        loss_p: one-sided, that nothing was lost.
        loss_adjusted: the same after Holm, over all tasks and slices.
        alarm: whether something was lost for sure, be it within the margin.
        merged: decision of the merged model that ships, where one is an arm.
        merges: all merged models that are arms.
        rivals: the adapter against other ways to the same end.
        measures: what else was measured of the same items.
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
    rivals: tuple[BaselineComparison, ...]
    measures: tuple[Measure, ...]
    slices: tuple[Slice, ...]
    calibration: CalibrationComparison | None
    classes: Classes | None
    drift: Drift | None


@dataclass(frozen=True)
class SuiteVerdict:
    """All tasks of a suite have to pass."""

    suite: str
    role: Role
    description: str
    decision: Decision
    tasks: tuple[TaskVerdict, ...]


@dataclass(frozen=True)
class Finding:
    """What the reader has to know though it does not decide.

    Attributes:
        kind: `negative transfer`: a cheaper way is as good; `alarm`: something was lost for sure.
    """

    kind: str
    suite: str
    task: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """All suites have to pass.

    Attributes:
        decision: of the adapter.
        merged: of the merged model that ships, where one is an arm.
        ships: the arm that it is.
    """

    decision: Decision
    merged: Decision | None
    ships: str | None
    findings: tuple[Finding, ...]
    suites: tuple[SuiteVerdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; infinite limits are written as null."""
        value: dict[str, Any] = finite(asdict(self))
        return value
