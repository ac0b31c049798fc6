"""Tasks over rows of a head that reads a text: kind, score, and the target of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_kit.data.rows import Row
from lora_kit.data.scored import SCORE
from lora_kit.evaluation.scores import TaskKind
from lora_kit.recipe.objective import HeadObjective


@dataclass(frozen=True)
class RowTask:
    """Task whose items are rows such as those that a head is trained on.

    Attributes:
        kind: kind of the task.
        score: score of all items together that recipes are compared by.
        item: returns the fields of an item with a text and the target of its row.
    """

    kind: TaskKind
    score: str
    item: Callable[[str, Row], dict[str, Any]]


def number_fields(numbers: Mapping[str, float]) -> dict[str, Any]:
    """Return the fields of an item with some numbers: `score` for a single one of that name."""
    is_single = tuple(numbers) == (SCORE,)
    return {"score": numbers[SCORE]} if is_single else {"scores": dict(numbers)}


def _class(text: str, row: Row) -> dict[str, Any]:
    return {"text": text, "label": row.label or row.messages[-1].content}


def _numbers(text: str, row: Row) -> dict[str, Any]:
    return {"text": text} | number_fields(row.values or {})


def _labels(text: str, row: Row) -> dict[str, Any]:
    return {"text": text, "labels": list(row.labels or ())}


def _tags(_: str, row: Row) -> dict[str, Any]:
    return {"tokens": list(row.words), "tags": list(row.tags or ())}


ROW_TASKS: Mapping[HeadObjective, RowTask] = {
    "classification": RowTask("classification", "macro_f1", _class),
    "regression": RowTask("regression", "r2", _numbers),
    "multi-label": RowTask("multi_label", "macro_f1", _labels),
    "token-classification": RowTask("token_classification", "entity_f1", _tags),
}
