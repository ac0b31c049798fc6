"""Columns of raw rows: renaming, class names, and the columns that nothing reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lora_kit.runtime.errors import DataError, did_you_mean

RawRow = Mapping[str, Any]
# Values that hold nothing.
EMPTY: tuple[object, ...] = (None, "", [], {})
# Columns of media in data sets for vision and speech.
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


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
    # A column of the field's own name stays, under a name that says so, as one that is not read.
    displaced = {
        f"{field} (columns.{field} names {column})": value[field]
        for field, column in columns.items()
        if field in value and column != field and field not in columns.values()
    }
    return {**value, **displaced, **{field: value[column] for field, column in columns.items()}}


def class_name(value: RawRow, column: str, names: Sequence[str], origin: str) -> Any:
    """Return the name of the class whose index a column holds; `None` for a missing value.

    A list of indices gives a list of names.

    Raises:
        DataError: if the index is out of range.
    """
    number = value.get(column)
    if number is None:
        return None
    if isinstance(number, list):
        return [class_name({column: one}, column, names, origin) for one in number]
    if not 0 <= number < len(names):
        raise DataError(
            f"{origin}: `{column}` must be a class index from 0 to {len(names) - 1} (got {number})."
            " Fix: correct or remove the row"
        )
    return names[number]


def unread_columns(value: RawRow, read: Collection[str]) -> tuple[str, ...]:
    """Return the columns that hold something and are not among those that are read."""
    return tuple(
        str(name) for name, held in value.items() if name not in read and held not in EMPTY
    )


def refuse_media(value: RawRow, origin: str) -> None:
    """Refuse a row with media beside its text, which would be trained on without them.

    Raises:
        DataError: if a column of media holds something.
    """
    for name in MEDIA:
        if value.get(name) not in EMPTY:
            raise DataError(
                f"{origin}: only text is read (got the column `{name}`). Fix: use rows without "
                "media, or remove the column if the text stands by itself"
            )


def list_columns(columns: Iterable[object]) -> str:
    """Return column names separated by commas; `none` if there are none."""
    names = map(str, columns)
    # Blanks around a name would not be seen.
    return ", ".join(name if name == name.strip() else repr(name) for name in names) or "none"
