"""Rows of `id` and `score`, as JSON lines or any other table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_kit.data.files.readers import TableRequest
from lora_kit.data.files.tables import read_table
from lora_kit.evaluation.imported.result import Columns, Result, TaskResults, by_id, cluster_of
from lora_kit.runtime.errors import EvaluationError, did_you_mean

SCORE = "score"
# Name of a task whose rows do not name one.
TASK = "scores"
# Fields that the report shows; those of the question have to be equal in both files.
QUESTION = ("prompt", "reference")
TEXTS = (*QUESTION, "output")


def read_score_table(path: Path, columns: Columns, field: str) -> list[TaskResults]:
    """Read a table with a column `id` and a score.

    Args:
        path: file of rows.
        columns: column of the score, by default `score`, and of the cluster.
        field: option that named the file, for error messages.

    Raises:
        EvaluationError: naming the line, if it has no id or no score.
        DataError: if the file cannot be read.
    """
    by_task: dict[str, list[Result]] = defaultdict(list)
    metric = columns.metric or SCORE
    for row, origin in read_table(TableRequest(str(path), field)):
        task = row.get("task")
        by_task[TASK if task is None else str(task)].append(_result(row, origin, metric, columns))
    if not by_task:
        raise EvaluationError(f"{path}: no rows (got an empty file). Fix: name another file")
    return [
        TaskResults(task, path, "table", metric, None, by_id(results))
        for task, results in by_task.items()
    ]


def _result(row: Mapping[str, Any], origin: str, metric: str, columns: Columns) -> Result:
    identifier = _value(row, "id", origin, "name of the item")
    if identifier is None:
        raise EvaluationError(f"{origin}: id: has no value. Fix: give each item its own id")
    score = _value(row, metric, origin, "number, true, false or null")
    texts = {name: "" if row.get(name) is None else str(row[name]) for name in TEXTS}
    return Result(
        id=str(identifier),
        origin=origin,
        score=number(score, metric, origin),
        cluster=cluster_of(row, columns.cluster, str(identifier), origin),
        asked={name: texts[name] for name in QUESTION if row.get(name) is not None},
        output=texts["output"],
        prompt=texts["prompt"],
        reference=texts["reference"],
    )


def _value(row: Mapping[str, Any], name: str, origin: str, meaning: str) -> Any:
    if name not in row:
        raise EvaluationError(
            f"{origin}: {name}: missing (got {', '.join(map(str, row)) or 'no fields'})."
            f"{did_you_mean(name, row)} Fix: give each row `{name}`, a {meaning}"
        )
    return row[name]


def number(value: Any, name: str, origin: str) -> float | None:
    """Return a score as a number; `None` for null and for what is not finite.

    Args:
        value: value of a row; a text in a file without types, such as CSV.
        name: name of the column.
        origin: place of the row.

    Raises:
        EvaluationError: if it is no number.
    """
    if isinstance(value, str):
        value = _parsed(value.strip().lower())
    if value is None:
        return None
    if not isinstance(value, bool | int | float):
        raise EvaluationError(
            f"{origin}: {name}: not a number (got {value!r:.60}). Fix: write a number, true or "
            "false, or null for an item without a score"
        )
    return float(value) if math.isfinite(value) else None


def _parsed(text: str) -> float | str | None:
    """Return the number that a text is; the text itself if it is none."""
    words = {"": None, "true": 1.0, "false": 0.0}
    if text in words:
        return words[text]
    try:
        return float(text)
    except ValueError:
        return text
