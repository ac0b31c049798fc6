"""What is reported of a task besides its verdict: none of it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.pairs import Pairs, mean_score
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.statistics.calibration import CalibrationComparison, compare_calibration
from lora_kit.statistics.decisions import Interval, holm, loss_p, paired_interval
from lora_kit.statistics.labels import LabelScores, label_scores

# A slice of fewer items says nothing that an interval would not drown.
SMALLEST_SLICE = 5
LOWER_IS_BETTER = ("loss", "nats", "bits_per_byte")


@dataclass(frozen=True)
class Measure:
    """A second measure of the same items; a positive difference is a better adapter."""

    name: str
    base: float
    adapter: float
    interval: Interval


@dataclass(frozen=True)
class Slice:
    """The items of one value of a field.

    Attributes:
        p: one-sided, that nothing was lost.
        adjusted: p after Holm, over all tasks and slices of the evaluation.
        alarm: whether the loss is significant after it.
    """

    field: str
    value: str
    base: float
    adapter: float
    interval: Interval
    won: int
    lost: int
    p: float
    adjusted: float = 1.0
    alarm: bool = False


@dataclass(frozen=True)
class Classes:
    """Per-class scores of both arms."""

    base: LabelScores
    adapter: LabelScores


@dataclass(frozen=True)
class Drift:
    """KL(base || adapter) in nats a token, mean over prompts, with its 95% interval."""

    interval: Interval

    @property
    def prompts(self) -> int:
        """On which it was measured."""
        return self.interval.items


def measures(pairs: Pairs, task: TaskSpec, confidence: float) -> tuple[Measure, ...]:
    """All that was measured besides the score, by name."""
    decided = task.score or ("accuracy" if task.kind != "lm_eval" else task.metric)
    names = sorted(set(pairs.before[0].measures) - {decided, "nats"})
    found = []
    for name in names:
        values = [
            (b.measures[name], a.measures[name])
            for b, a in zip(pairs.before, pairs.after, strict=True)
            if name in b.measures and name in a.measures
        ]
        if len(values) < len(pairs.before):
            continue
        if task.kind == "lm_eval" and not name.startswith(("acc", "exact_match")):
            continue  # which way is better, its name alone does not say
        base, adapter = (np.array(column, dtype=np.float64) for column in zip(*values, strict=True))
        sign = -1.0 if name in LOWER_IS_BETTER else 1.0
        binary = bool(np.isin(np.concatenate([base, adapter]), (0.0, 1.0)).all())
        interval = paired_interval(sign * (adapter - base), pairs.clusters, confidence, binary)
        found.append(Measure(name, float(base.mean()), float(adapter.mean()), interval))
    return tuple(found)


def slices(pairs: Pairs, confidence: float) -> tuple[Slice, ...]:
    """The difference on each slice, the worst first; Holm comes when all of them are known."""
    named = sorted({(f, v) for entry in pairs.before for f, v in entry.slices.items()})
    found = []
    for field, value in named:
        part = pairs.where(field, value)
        if not SMALLEST_SLICE <= len(part.before) < len(pairs.before):
            continue
        found.append(
            Slice(
                field,
                value,
                mean_score(part.before),
                mean_score(part.after),
                paired_interval(part.differences, part.clusters, confidence, part.binary),
                part.won,
                part.lost,
                loss_p(part.differences, part.clusters, part.binary),
            )
        )
    return tuple(sorted(found, key=lambda one: one.interval.delta))


def calibration(pairs: Pairs, confidence: float) -> CalibrationComparison | None:
    """ECE and Brier of both arms; `None` where there are no choices to be sure of."""
    chosen = [
        (b, a)
        for b, a in zip(pairs.before, pairs.after, strict=True)
        if b.answer is not None and len(b.log_likelihoods) > 1 and len(a.log_likelihoods) > 1
    ]
    if len(chosen) < len(pairs.before):
        return None
    return compare_calibration(
        [softmax(np.array(b.log_likelihoods)).tolist() for b, _ in chosen],
        [softmax(np.array(a.log_likelihoods)).tolist() for _, a in chosen],
        [b.answer for b, _ in chosen if b.answer is not None],
        [b.cluster for b, _ in chosen],
        confidence,
    )


def classes(pairs: Pairs, task: TaskSpec) -> Classes | None:
    """Precision, recall and F1 of each class; `None` unless the task is a classification."""
    if task.kind != "classification":
        return None
    truth = [entry.reference for entry in pairs.before]
    return Classes(
        label_scores([entry.output for entry in pairs.before], truth),
        label_scores([entry.output for entry in pairs.after], truth),
    )


def drift(entries: Mapping[str, Entry]) -> Drift | None:
    """Mean drift over prompts; `None` where none was measured."""
    scored = [entry for entry in entries.values() if entry.score is not None]
    if not scored:
        return None
    values = np.array([entry.score for entry in scored], dtype=np.float64)
    return Drift(paired_interval(values, [entry.cluster for entry in scored], 0.95, binary=False))


def with_alarms(
    found: Sequence[tuple[Slice, ...]], losses: Sequence[float], alpha: float
) -> tuple[list[tuple[Slice, ...]], list[float]]:
    """Slices with their adjusted p and alarm, and the adjusted p of the tasks themselves.

    Holm (1979) over all of them at once: with a hundred slices, five would be alarms by chance.
    """
    flat = [one.p for part in found for one in part]
    adjusted = iter(holm([*losses, *flat]))
    of_tasks = [next(adjusted) for _ in losses]
    parts = []
    for part in found:
        raised = []
        for one in part:
            value = next(adjusted)
            raised.append(replace(one, adjusted=value, alarm=value <= alpha))
        parts.append(tuple(raised))
    return parts, of_tasks
