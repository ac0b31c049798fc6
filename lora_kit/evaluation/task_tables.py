"""Reading of a task's source: rows of a table or of a built-in source, before tokenization."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lora_kit.data.columns import RawRow, list_columns, rename_columns, unread_columns
from lora_kit.data.files.readers import TableRequest
from lora_kit.data.files.tables import read_table
from lora_kit.data.row_sets import Rows
from lora_kit.data.sources import SPLITS, open_source
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.recipe.data import RowFormat, SourceSpec
from lora_kit.runtime.errors import DataError


def read_task_table(
    spec: TaskSpec, built_in: Collection[str], indices: Collection[str] = ()
) -> Iterator[tuple[RawRow, str]]:
    """Yield the rows of a table with their origins, columns renamed to the fields of the kind.

    Args:
        spec: task.
        built_in: built-in sources of the kind, named in the error for an unknown source.
        indices: fields of class indices that are to stay indices; others are read as names.

    Raises:
        DataError: if the source is unknown, or a column is missing.
    """
    request = TableRequest(
        spec.source,
        f"task {spec.name}: source",
        spec.split,
        spec.subset,
        spec.revision,
        built_in=tuple(built_in),
    )
    for value, origin in read_table(request, [spec.columns.get(name, name) for name in indices]):
        yield rename_columns(value, f"task {spec.name}: {origin}", spec.columns), origin


def read_built_in(spec: TaskSpec, needed: Sequence[RowFormat] = ()) -> Rows:
    """Read a split of a built-in source.

    Args:
        spec: task.
        needed: formats that the kind of the task needs, as in `open_source`.

    Raises:
        DataError: if the split is unknown, or the task sets fields that the source defines.
    """
    if spec.split not in SPLITS:
        raise DataError(
            f"task {spec.name}: split: unknown for {spec.source} (got {spec.split}). Fix: use one "
            f"of {', '.join(SPLITS)}"
        )
    refuse_own_fields(spec)
    source = SourceSpec(source=spec.source, split=spec.split)
    return open_source(source, 0, f"task {spec.name}: source", needed=needed)


def refuse_own_fields(spec: TaskSpec) -> None:
    """Refuse `columns`, `cluster` and `slices`, which a built-in source would ignore.

    Raises:
        DataError: if one of the fields is set.
    """
    for name in ("columns", "cluster", "slices"):
        value = getattr(spec, name)
        if value:
            raise DataError(
                f"task {spec.name}: {name}: the built-in source {spec.source} defines its own "
                f"(got {value}). Fix: remove {name}"
            )


def row_identifier(value: Mapping[str, Any], origin: str) -> str:
    """Return the id of a row; its origin if the row has none."""
    identifier = value.get("id")
    return origin if identifier is None else str(identifier)


def row_cluster(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> str:
    """Return the cluster of a row; its id if the task names no field.

    Raises:
        DataError: if the row lacks the field.
    """
    if spec.cluster is None:
        return row_identifier(value, origin)
    return _field(value, spec.cluster, origin, f"`cluster` of task {spec.name}")


def row_slices(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> dict[str, str]:
    """Return the values of the task's slices.

    Raises:
        DataError: if the row lacks a field.
    """
    place = f"`slices` of task {spec.name}"
    return {name: _field(value, name, origin, place) for name in spec.slices}


def unread_by_task(value: RawRow, spec: TaskSpec, fields: Collection[str]) -> tuple[str, ...]:
    """Return the columns that hold something and that neither the task nor its kind reads.

    Args:
        value: the row, with columns under the names of the kind's fields.
        spec: task.
        fields: fields that the kind reads.
    """
    own = {"id", spec.cluster or "id", *spec.slices, *spec.columns.values()}
    return unread_columns(value, {*own, *fields})


def _field(value: Mapping[str, Any], name: str, origin: str, place: str) -> str:
    if value.get(name) is None or not str(value[name]).strip():
        raise DataError(
            f"{origin}: no field {name!r} for {place} (got "
            f"{list_columns(key for key in value if value[key] is not None)}). Fix: correct the "
            "task or the file"
        )
    return str(value[name])
