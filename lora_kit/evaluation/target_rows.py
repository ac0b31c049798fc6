"""Rows of tasks that only a head answers: a text and its target, or two texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_kit.data.columns import list_columns
from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Message, Row
from lora_kit.data.scored import SCORE, parse_number
from lora_kit.data.sources import BUILT_IN, drop_nulls
from lora_kit.data.turns import read_text
from lora_kit.evaluation.scores import TaskKind
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.task_tables import (
    read_built_in,
    read_task_table,
    row_cluster,
    row_identifier,
    row_slices,
    unread_by_task,
)
from lora_kit.recipe.objective import FORMATS_OF, HeadObjective
from lora_kit.runtime.errors import DataError

# Objective whose rows the items of a kind are.
OBJECTIVES: Mapping[TaskKind, HeadObjective] = {
    "regression": "regression",
    "multi_label": "multi-label",
    "token_classification": "token-classification",
    "retrieval": "embedding",
    "similarity": "embedding",
}

# Fields of a row of a similarity task.
SIMILARITY_FIELDS = ("sentence1", "sentence2", SCORE)
SIMILARITY_ROW = '{"sentence1": "...", "sentence2": "...", "score": 3.5}'


@dataclass(frozen=True)
class TargetRow:
    """Text with its target.

    Attributes:
        unused: columns of the row that are not used.
    """

    id: str
    row: Row
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def read_targets(spec: TaskSpec) -> list[TargetRow]:
    """Read the rows of a task that only a head answers.

    Raises:
        DataError: if the source is unknown, or a row is invalid; names the row.
    """
    needed = FORMATS_OF[OBJECTIVES[spec.kind]]
    if spec.source in BUILT_IN:
        rows = read_built_in(spec, needed)
        if any(row.format not in needed for row in rows):
            raise DataError(
                f"task {spec.name}: source: the rows are no items of kind {spec.kind} (got "
                f"{spec.source}). Fix: use one of the sources built in for it: "
                f"{', '.join(_sources(spec.kind)) or 'none'}"
            )
        return [TargetRow(row.origin, row, row.cluster) for row in rows]
    found = []
    for value, origin in read_task_table(spec, _sources(spec.kind)):
        row = parse_row(drop_nulls(value, needed=needed), origin, needed=needed)
        found.append(
            TargetRow(
                row_identifier(value, origin),
                row,
                row_cluster(value, origin, spec),
                row_slices(value, origin, spec),
                unread_by_task(value, spec, set(value) - set(row.unused)),
            )
        )
    return found


def read_similarities(spec: TaskSpec) -> list[TargetRow]:
    """Read the rows of a similarity task: two texts each, and a score of how similar they are.

    Raises:
        DataError: if the source is unknown, or a row is invalid; names the row.
    """
    found = []
    for value, origin in read_task_table(spec, ()):
        if missing := [name for name in SIMILARITY_FIELDS if value.get(name) is None]:
            raise DataError(
                f"{origin}: no column {missing[0]!r} (got {list_columns(value)}; expected "
                f"{SIMILARITY_ROW}). Fix: map it with `columns` of task {spec.name}"
            )
        texts = [read_text(value[name], name, origin) for name in SIMILARITY_FIELDS[:2]]
        number = parse_number(value[SCORE], SCORE, origin)
        cluster = row_cluster(value, origin, spec)
        row = Row(
            origin, cluster, tuple(Message("user", text) for text in texts), values={SCORE: number}
        )
        found.append(
            TargetRow(
                row_identifier(value, origin),
                row,
                cluster,
                row_slices(value, origin, spec),
                unread_by_task(value, spec, SIMILARITY_FIELDS),
            )
        )
    return found


def _sources(kind: TaskKind) -> list[str]:
    """Return the built-in sources whose rows are items of a kind."""
    needed = FORMATS_OF[OBJECTIVES[kind]]
    return [name for name, one in BUILT_IN.items() if one.format in needed]
