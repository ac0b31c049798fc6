"""Columns of raw rows: renaming, class names, and hints for misspelled names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_kit.runtime.errors import DataError, did_you_mean

RawRow = Mapping[str, Any]


def rename_columns(value: RawRow, origin: str, columns: Mapping[str, str]) -> RawRow:
    """Return a raw row with columns added under the names of the format's fields.

    Args:
        value: the raw row.
        origin: location of the row, for the error message.
        columns: column name by field.

    Raises:
        DataError: if a column is missing; the message names the most similar one.
    """
    for field, column in columns.items():
        if column not in value:
            raise DataError(
                f"{origin}: no column {column!r}, which columns.{field} names (got "
                f"{list_columns(value)}).{did_you_mean(column, value)} Fix: correct columns.{field}"
            )
    return {**value, **{field: value[column] for field, column in columns.items()}}


def class_name(value: RawRow, column: str, names: Sequence[str], origin: str) -> Any:
    """Return the name of the class whose index a column holds; `None` for a missing value.

    Raises:
        DataError: if the index is out of range.
    """
    number = value.get(column)
    if number is None:
        return None
    if not 0 <= number < len(names):
        raise DataError(
            f"{origin}: `{column}` must be a class index from 0 to {len(names) - 1} (got {number})."
            " Fix: correct or remove the row"
        )
    return names[number]


def list_columns(columns: Iterable[object]) -> str:
    """Return column names separated by commas; `none` if there are none."""
    return ", ".join(map(str, columns)) or "none"
