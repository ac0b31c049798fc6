"""Scores that a task has for all of its items together: statistics of an arm's entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lora_kit.data.scored import read_numbers
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.scores import SCORES, ScoreName, TaskKind
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.statistics import numbers
from lora_kit.statistics.bootstrap import Statistic
from lora_kit.statistics.clusters import Floats

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


# Scores of all items together, by the kind of the task.
AGGREGATES: Mapping[TaskKind, Mapping[ScoreName, Aggregate]] = {
    "regression": {
        "r2": _of_numbers(numbers.r2),
        "rmse": _of_numbers(numbers.rmse),
        "spearman": _of_numbers(numbers.spearman),
    },
}


def aggregate_of(task: TaskSpec, entries: Sequence[Entry]) -> Statistic | None:
    """Return the statistic of a task's score for an arm; `None` for a score of items."""
    aggregate = AGGREGATES.get(task.kind, {}).get(task.score or task.item_score or "accuracy")
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
    found: dict[str, tuple[Statistic, Statistic, bool]] = {
        str(name): (aggregate(before), aggregate(after), SCORES[name].higher_is_better)
        for name, aggregate in AGGREGATES.get(task.kind, {}).items()
        if name != task.score
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
