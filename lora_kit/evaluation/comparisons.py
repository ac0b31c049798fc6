"""Comparison of two arms on one task, and the decision that it supports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora_kit.evaluation.aggregates import aggregate_of
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.pairs import Pairs, mean_score
from lora_kit.evaluation.scores import OF_HEADS
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.statistics import decisions
from lora_kit.statistics.decisions import (
    Decision,
    Interval,
    PairedComparison,
    non_inferiority,
    superiority,
)
from lora_kit.statistics.judged_preference import (
    JudgeAccuracy,
    compare_preference,
    corrected_preference,
)
from lora_kit.statistics.labels import compare_macro_f1, label_scores
from lora_kit.statistics.looks import Look
from lora_kit.statistics.resampled import compare_statistics, items_to_decide_by_width

# Kinds of tasks whose items have a class or numbers.
WITH_TARGETS = ("classification", *OF_HEADS)


def texts_to_judge(task: TaskSpec) -> tuple[str, ...]:
    """Return the columns of texts that judging a task needs: classes or numbers of the items."""
    return ("output", "reference", "choices") if task.kind in WITH_TARGETS else ()


def compare(pairs: Pairs, task: TaskSpec, look: Look) -> PairedComparison:
    """Test for superiority without a margin, for non-inferiority with one, at a look's level.

    Intervals and p-values are repeated ones: they hold whenever one stops, and the interval has
    the confidence of all looks together.
    """
    sides = 2 if task.margin is None else 1
    comparison = _compare(pairs, task, sides * look.level)
    p = min(1.0, sides * look.repeated_p(comparison.p / sides))
    return replace(comparison, p=p, interval=repeated(comparison.interval, look))


def items_to_decide(pairs: Pairs, task: TaskSpec, look: Look) -> int | None:
    """Return the items that would decide at the level of the last look, which is nearly the whole.

    The level of an early look would ask for several times as many. `None` if no number decides.
    """
    last = look.looks.look(len(look.looks))
    alpha = (2 if task.margin is None else 1) * last.level
    if task.kind == "judge":
        return None  # labels may be as short as items
    if task.of_all_items:
        return items_to_decide_by_width(_compare(pairs, task, alpha).interval, task.margin)
    return decisions.items_to_decide(
        pairs.differences, pairs.clusters, alpha, task.margin, pairs.binary
    )


def repeated(interval: Interval, look: Look) -> Interval:
    """Return an interval that was computed at a look's level, with the confidence of all looks."""
    return replace(interval, confidence=look.confidence)


def _compare(pairs: Pairs, task: TaskSpec, alpha: float) -> PairedComparison:
    before, after = (aggregate_of(task, entries) for entries in (pairs.before, pairs.after))
    if before is not None and after is not None:
        return compare_statistics(
            before, after, pairs.clusters, alpha, task.margin, task.higher_is_better
        )
    if task.score == "macro_f1":
        return compare_macro_f1(
            [entry.output for entry in pairs.before],
            [entry.output for entry in pairs.after],
            [entry.reference for entry in pairs.before],
            pairs.clusters,
            alpha,
            task.margin,
        )
    if (accuracy := _accuracy(task)) is not None:
        is_base = pairs.before[0].arm == "base"
        return compare_preference(
            pairs.differences, pairs.clusters, accuracy, alpha, task.margin, is_base
        )
    if task.margin is None:
        return superiority(pairs.differences, pairs.clusters, alpha, pairs.binary)
    return non_inferiority(pairs.differences, pairs.clusters, alpha, task.margin, pairs.binary)


def _accuracy(task: TaskSpec) -> JudgeAccuracy | None:
    return task.judge.accuracy if task.judge is not None else None


def loss_p(pairs: Pairs, task: TaskSpec) -> float:
    """Return the one-sided p-value of no loss; 1 if a judge says so that is not calibrated."""
    if task.kind != "judge":
        return decisions.loss_p(pairs.differences, pairs.clusters, pairs.binary)
    if _accuracy(task) is None:
        return 1.0
    return _compare(pairs, task.model_copy(update={"margin": None}), 0.05).one_sided[1]


def decide(pairs: Pairs, compared: Decision, task: TaskSpec) -> tuple[Decision, str]:
    """Return the decision, and the reason if it differs from the comparison's."""
    if pairs.binary and task.margin is not None and task.margin >= 1:
        return "INCONCLUSIVE", (
            f"every score is 0 or 1, so no loss could exceed the margin of {task.margin:g}"
        )
    if compared != "PASS":
        return compared, ""
    if pairs.lost_scores:
        # The items without a score may be those on which the adapter breaks down.
        return "INCONCLUSIVE", "the adapter has no score on items on which the base has one"
    if not pairs.binary and np.ptp(pairs.differences) == 0 and pairs.differences[0] != 0:
        return "INCONCLUSIVE", "all differences are equal: no spread to estimate an interval from"
    if task.margin is not None and pairs.binary and task.higher_is_better:
        room = task_score(pairs.before, task) - _chance_level(pairs, task)
        if room <= task.margin:
            return "INCONCLUSIVE", (
                f"the base is only {room:.1%} above guessing, less than the margin, so a loss "
                "could not be detected"
            )
    return "PASS", ""


def _chance_level(pairs: Pairs, task: TaskSpec) -> float:
    """Return the expected score of guessing: 1 / number of choices, or 0 without choices."""
    if task.score == "macro_f1":
        return 1 / len({entry.reference for entry in pairs.before})
    counts = [len(entry.choices) for entry in pairs.before]
    return float(np.mean([1 / count if count else 0.0 for count in counts]))


def task_score(entries: Sequence[Entry], task: TaskSpec) -> float:
    """Return the score of an arm on a task, over entries that all have one."""
    accuracy = _accuracy(task)
    if accuracy is not None and entries[0].arm != "base":
        return corrected_preference(mean_score(entries), accuracy)
    statistic = aggregate_of(task, entries)
    if statistic is not None:
        return float(statistic(np.ones((1, len(entries))))[0])
    if task.score == "macro_f1":
        return label_scores(
            [entry.output for entry in entries], [entry.reference for entry in entries]
        ).macro_f1
    return mean_score(entries)
