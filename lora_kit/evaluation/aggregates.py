"""Scores that a task has for all of its items together: statistics of an arm's entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from lora_kit.data.entities import Entity, read_entities
from lora_kit.data.scored import read_numbers
from lora_kit.data.tagged import label_values, read_labels
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.scores import SCORES, ScoreName, TaskKind
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.statistics import entities, multi_label, numbers
from lora_kit.statistics.bootstrap import Statistic
from lora_kit.statistics.clusters import Floats

Spans = Sequence[Entity]
Aggregate = Callable[[Sequence[Entry]], Statistic]


def _of_numbers(score: Callable[[Floats, Floats], Statistic]) -> Aggregate:
    def statistic(entries: Sequence[Entry]) -> Statistic:
        return score(*number_tables(entries)[1:])

    return statistic


def number_tables(entries: Sequence[Entry]) -> tuple[list[str], Floats, Floats]:
    """Return the names of the outputs, and predicted and true numbers, (items, outputs) each."""
    true = [read_numbers(entry.reference) for entry in entries]
    given = [read_numbers(entry.output) for entry in entries]
    names = list(true[0])
    return names, _table(given, names), _table(true, names)


def _table(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float64)


def _of_labels(score: Callable[[Floats, Floats], Statistic], ranked: bool = False) -> Aggregate:
    def statistic(entries: Sequence[Entry]) -> Statistic:
        tables = label_tables(entries)
        return score(tables.scores if ranked else tables.predicted, tables.true)

    return statistic


@dataclass(frozen=True)
class LabelTables:
    """Predictions of labels.

    Attributes:
        names: names of the labels.
        predicted: (items, labels), 1 where a label is predicted.
        true: (items, labels), 1 where an item has a label.
        scores: (items, labels), logits; `predicted` for an arm without any.
    """

    names: tuple[str, ...]
    predicted: Floats
    true: Floats
    scores: Floats


def label_tables(entries: Sequence[Entry]) -> LabelTables:
    """Return the predictions and labels of the entries of a multi-label task."""
    names = entries[0].choices
    predicted, true = (
        np.array([label_values(read_labels(text), names) for text in texts])
        for texts in ([e.output for e in entries], [e.reference for e in entries])
    )
    has_scores = all(entry.log_likelihoods for entry in entries)
    scores = np.array([e.log_likelihoods for e in entries]) if has_scores else predicted
    return LabelTables(names, predicted, true, scores)


def class_probabilities(entries: Sequence[Entry]) -> dict[str, Floats] | None:
    """Return the probabilities of each class, (items,) each; `None` unless all are known."""
    names = entries[0].choices
    are_known = all(len(entry.log_likelihoods) == len(names) > 1 for entry in entries)
    if not are_known or not {entry.reference for entry in entries} <= {*names}:
        return None
    shares = softmax(np.array([entry.log_likelihoods for entry in entries]), axis=1)
    return dict(zip(names, shares.T, strict=True))


def _class_average_precision(entries: Sequence[Entry]) -> Statistic:
    """Return the mean of the classes' average precision, each against all others."""
    names, found = entries[0].choices, class_probabilities(entries)
    given, true = (
        np.array([[text == name for name in names] for text in texts], dtype=np.float64)
        for texts in ([e.output for e in entries], [e.reference for e in entries])
    )
    scores = given if found is None else np.stack(list(found.values()), axis=1)
    return multi_label.mean_average_precision(scores, true)


def entity_lists(entries: Sequence[Entry]) -> tuple[list[Spans], list[Spans]]:
    """Return the predicted and the true entities of each entry."""
    return (
        [read_entities(entry.output) for entry in entries],
        [read_entities(entry.reference) for entry in entries],
    )


def _of_entities(
    count: Callable[[Sequence[entities.Span], Sequence[entities.Span]], int],
) -> Aggregate:
    def statistic(entries: Sequence[Entry]) -> Statistic:
        return entities.entity_f1(*entity_lists(entries), count)

    return statistic


# Scores of all items together, by the kind of the task.
AGGREGATES: Mapping[TaskKind, Mapping[ScoreName, Aggregate]] = {
    "classification": {"mean_average_precision": _class_average_precision},
    "regression": {
        "r2": _of_numbers(numbers.r2),
        "rmse": _of_numbers(numbers.rmse),
        "spearman": _of_numbers(numbers.spearman),
    },
    "similarity": {"spearman": _of_numbers(numbers.spearman)},
    "multi_label": {
        "micro_f1": _of_labels(multi_label.micro_f1),
        "macro_f1": _of_labels(multi_label.macro_f1),
        "mean_average_precision": _of_labels(multi_label.mean_average_precision, ranked=True),
    },
    "token_classification": {
        "entity_f1": _of_entities(entities.equal_entities),
        "relaxed_entity_f1": _of_entities(entities.overlapping_entities),
    },
}


def aggregate_of(task: TaskSpec, entries: Sequence[Entry]) -> Statistic | None:
    """Return the statistic of a task's score for an arm; `None` for a score of items."""
    if task.score_name is None:
        return None
    aggregate = AGGREGATES.get(task.kind, {}).get(task.score_name)
    return aggregate(entries) if aggregate else None


def secondary_statistics(
    task: TaskSpec, before: Sequence[Entry], after: Sequence[Entry]
) -> dict[str, tuple[Statistic, Statistic, bool]]:
    """Return the statistics of both arms for every score of a task besides its own.

    With several numbers, each has its own scores beside those of all.

    Args:
        task: the task.
        before: entries of the first arm, all with a score.
        after: entries of the second arm, in the same order.

    Returns:
        By name of the metric: both statistics, and true if a higher value is better.
    """
    if task.kind == "classification" and None in map(class_probabilities, (before, after)):
        return {}
    found: dict[str, tuple[Statistic, Statistic, bool]] = {
        str(name): (aggregate(before), aggregate(after), SCORES[task.kind][name].higher_is_better)
        for name, aggregate in AGGREGATES.get(task.kind, {}).items()
        if name != task.score_name
    }
    return found | (_by_output(before, after) if task.kind == "regression" else {})


def _by_output(
    before: Sequence[Entry], after: Sequence[Entry]
) -> dict[str, tuple[Statistic, Statistic, bool]]:
    names, *first = number_tables(before)
    second = number_tables(after)[1:]
    if len(names) == 1:
        return {}
    scores = {"r2": numbers.r2, "rmse": numbers.rmse, "spearman": numbers.spearman}
    return {
        f"{label} of {name}": (
            score(*(table[:, [number]] for table in first)),
            score(*(table[:, [number]] for table in second)),
            label != "rmse",
        )
        for number, name in enumerate(names)
        for label, score in scores.items()
    }
