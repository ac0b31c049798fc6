"""Diagnostics reported beside the verdict of a task; none of them decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax

from lora_kit.evaluation.aggregates import (
    class_probabilities,
    entity_lists,
    label_tables,
    secondary_statistics,
)
from lora_kit.evaluation.comparisons import repeated
from lora_kit.evaluation.cut_answers import CUT_OFF
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.pairs import Pairs, mean_score
from lora_kit.evaluation.scores import TaskKind
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.thoughts import UNENDED
from lora_kit.statistics.bootstrap import bootstrap_statistic
from lora_kit.statistics.calibration import CalibrationComparison, compare_calibration
from lora_kit.statistics.clusters import Floats, cluster_count
from lora_kit.statistics.decisions import Interval, holm, loss_p, paired_interval
from lora_kit.statistics.entities import entity_scores
from lora_kit.statistics.labels import (
    Confusion,
    LabelScores,
    count_confusions,
    label_scores,
    table_scores,
)
from lora_kit.statistics.looks import Look
from lora_kit.statistics.resampled import change_of

# The interval of a smaller slice would be too wide to be of use.
SMALLEST_SLICE = 5
LOWER_IS_BETTER = ("loss", "bits_per_byte", CUT_OFF, UNENDED)
# Beginnings of the names of lm-eval's metrics of which a higher value is better, and our own.
KNOWN_IN_LM_EVAL = ("acc", "exact_match", CUT_OFF)


@dataclass(frozen=True)
class SecondaryMetric:
    """Secondary metric of the same items; a positive difference favours the adapter."""

    name: str
    base: float
    adapter: float
    interval: Interval
    higher_is_better: bool = True


@dataclass(frozen=True)
class Slice:
    """Result on the items that share one value of a field.

    Attributes:
        p: one-sided p-value of no loss.
        adjusted: `p` after Holm, over all tasks and slices of the evaluation.
        alarm: true if the loss is significant after that adjustment.
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
class ClassScores:
    """Scores of both arms for each class, label or type of entities.

    Attributes:
        confusion: items by true and predicted class of the adapter; `None` for items with several
            labels or entities.
    """

    base: LabelScores
    adapter: LabelScores
    confusion: Confusion | None = None


@dataclass(frozen=True)
class Drift:
    """KL(base || adapter) in nats a token, mean over prompts, with its 95% interval."""

    interval: Interval

    @property
    def prompts(self) -> int:
        """Number of prompts measured."""
        return self.interval.items


def secondary_metrics(pairs: Pairs, task: TaskSpec, look: Look) -> tuple[SecondaryMetric, ...]:
    """Compare the arms on every metric besides the score, in order of name."""
    # The measures of an lm_eval item hold no score: only its grading knows the metric's full name.
    score = None if task.kind == "lm_eval" else task.score_name or "accuracy"
    names = sorted(set(pairs.before[0].measures) - {score, "nats"})
    results = []
    for name in names:
        values = [
            (b.measures[name], a.measures[name])
            for b, a in zip(pairs.before, pairs.after, strict=True)
            if name in b.measures and name in a.measures
        ]
        if len(values) < len(pairs.before):
            continue
        if task.kind == "lm_eval" and not name.startswith(KNOWN_IN_LM_EVAL):
            continue  # the name alone does not say if a higher value is better
        base, adapter = (np.array(column, dtype=np.float64) for column in zip(*values, strict=True))
        sign = -1.0 if name in LOWER_IS_BETTER else 1.0
        binary = bool(np.isin(np.concatenate([base, adapter]), (0.0, 1.0)).all())
        interval = _interval(sign * (adapter - base), pairs.clusters, binary, look)
        means, is_higher = (float(base.mean()), float(adapter.mean())), sign > 0
        results.append(SecondaryMetric(name, *means, interval, is_higher))
    return (*results, *_of_all_items(pairs, task, look))


def _of_all_items(pairs: Pairs, task: TaskSpec, look: Look) -> list[SecondaryMetric]:
    """Compare the arms on scores that are defined for all items together."""
    every, found = np.ones((1, len(pairs.before))), []
    for name, (before, after, higher) in secondary_statistics(
        task, pairs.before, pairs.after
    ).items():
        change = change_of(before, after, higher)
        if not np.isfinite(change(every)[0]):
            continue  # such as the average precision of labels that no item has
        low, high = bootstrap_statistic(change, pairs.clusters, look.nominal_confidence)
        interval = Interval(
            float(change(every)[0]),
            low,
            high,
            look.nominal_confidence,
            len(pairs.before),
            cluster_count(pairs.clusters),
        )
        base, adapter = (float(one(every)[0]) for one in (before, after))
        found.append(SecondaryMetric(name, base, adapter, repeated(interval, look), higher))
    return found


def _interval(differences: Floats, clusters: Sequence[str], binary: bool, look: Look) -> Interval:
    nominal = paired_interval(differences, clusters, look.nominal_confidence, binary)
    return repeated(nominal, look)


def slice_results(pairs: Pairs, look: Look) -> tuple[Slice, ...]:
    """Compare the arms on each slice, worst first; `mark_alarms` adjusts the p-values later.

    Args:
        pairs: items that were asked.
        look: look by which they were asked, which intervals and p-values allow for.
    """
    values = sorted({(f, v) for entry in pairs.before for f, v in entry.slices.items()})
    results = []
    for field, value in values:
        part = pairs.in_slice(field, value)
        if not SMALLEST_SLICE <= len(part.before) < len(pairs.before):
            continue
        results.append(
            Slice(
                field,
                value,
                mean_score(part.before),
                mean_score(part.after),
                _interval(part.differences, part.clusters, part.binary, look),
                part.won,
                part.lost,
                look.repeated_p(loss_p(part.differences, part.clusters, part.binary)),
            )
        )
    return tuple(sorted(results, key=lambda one: one.interval.delta))


def choice_calibration(pairs: Pairs, look: Look) -> CalibrationComparison | None:
    """Compare ECE and Brier score of the arms; `None` for tasks without choices."""
    chosen = [
        (b, a)
        for b, a in zip(pairs.before, pairs.after, strict=True)
        if b.answer is not None and len(b.log_likelihoods) > 1 and len(a.log_likelihoods) > 1
    ]
    if len(chosen) < len(pairs.before):
        return None
    compared = compare_calibration(
        [softmax(np.array(b.log_likelihoods)).tolist() for b, _ in chosen],
        [softmax(np.array(a.log_likelihoods)).tolist() for _, a in chosen],
        [b.answer for b, _ in chosen if b.answer is not None],
        [b.cluster for b, _ in chosen],
        look.nominal_confidence,
    )
    ece, brier = repeated(compared.ece, look), repeated(compared.brier, look)
    return replace(compared, ece=ece, brier=brier)


def class_scores(pairs: Pairs, task: TaskSpec) -> ClassScores | None:
    """Compute the scores of each class, label or type; `None` for a task without any."""
    scores = SCORES_BY_NAME.get(task.kind)
    return scores(pairs) if scores is not None else None


def _scores_of_labels(pairs: Pairs) -> ClassScores | None:
    before, after = (label_tables(entries) for entries in (pairs.before, pairs.after))
    if not before.true.any():
        return None  # as for types
    return ClassScores(
        table_scores(before.names, before.predicted, before.true, before.scores),
        table_scores(after.names, after.predicted, after.true, after.scores),
    )


def _scores_of_types(pairs: Pairs) -> ClassScores | None:
    before, after = (entity_lists(entries) for entries in (pairs.before, pairs.after))
    if not any(before[1]):
        return None  # the items of an early look may have no entity
    return ClassScores(entity_scores(*before), entity_scores(*after))


def _scores_of_classes(pairs: Pairs) -> ClassScores:
    truth = [entry.reference for entry in pairs.before]
    base, adapter = (
        label_scores([entry.output for entry in entries], truth, class_probabilities(entries))
        for entries in (pairs.before, pairs.after)
    )
    return ClassScores(
        base, adapter, count_confusions([entry.output for entry in pairs.after], truth)
    )


# Scores of each class, label or type, by the kind of the task.
SCORES_BY_NAME: Mapping[TaskKind, Callable[[Pairs], ClassScores | None]] = {
    "classification": _scores_of_classes,
    "multi_label": _scores_of_labels,
    "token_classification": _scores_of_types,
}


def mean_drift(entries: Mapping[str, Entry]) -> Drift | None:
    """Compute the mean drift over prompts; `None` if none was measured."""
    scored = [entry for entry in entries.values() if entry.score is not None]
    if not scored:
        return None
    values = np.array([entry.score for entry in scored], dtype=np.float64)
    return Drift(paired_interval(values, [entry.cluster for entry in scored], 0.95, binary=False))


def mark_alarms(
    slices: Sequence[tuple[Slice, ...]], losses: Sequence[float], alpha: float
) -> tuple[list[tuple[Slice, ...]], list[float]]:
    """Adjust the p-values of losses and mark significant slices.

    Holm (1979) over all tasks and slices at once: without it, five of a hundred slices would be
    alarms by chance.

    Args:
        slices: slices of each task.
        losses: one-sided p-value of no loss, for each task.
        alpha: level of the family of tests.

    Returns:
        Slices of each task with `adjusted` and `alarm` set, and the adjusted p-value of each task.
    """
    adjusted = iter(holm([*losses, *(one.p for of_task in slices for one in of_task)]))
    adjusted_losses = [next(adjusted) for _ in losses]
    marked = []
    for of_task in slices:
        values = [next(adjusted) for _ in of_task]
        marked.append(
            tuple(
                replace(one, adjusted=value, alarm=value <= alpha)
                for one, value in zip(of_task, values, strict=True)
            )
        )
    return marked, adjusted_losses
