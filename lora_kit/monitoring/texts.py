"""Texts of a stream: reading in any row format, times, and order."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from lora_kit.data.columns import list_columns
from lora_kit.data.entities import parse_words
from lora_kit.data.files.readers import TableRequest
from lora_kit.data.files.tables import read_table
from lora_kit.data.formats import FORMATS, parse_row
from lora_kit.data.rows import Row
from lora_kit.data.sources import drop_nulls
from lora_kit.evaluation.reading import answered
from lora_kit.recipe.data import RowFormat
from lora_kit.runtime.errors import DataError, did_you_mean

TIME = "time"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Time:
    """Time of a text.

    Attributes:
        seconds: seconds since 1970 for a date; the number itself otherwise.
        is_date: true for a date, false for a number.
        written: the time as the file has it.
    """

    seconds: float
    is_date: bool
    written: str


@dataclass(frozen=True)
class StreamText:
    """Text of a stream.

    Attributes:
        origin: file and line.
        text: all turns before the answer, or the text.
        cluster: value that texts share which are not independent; empty without such a field.
        row: the row as it was parsed, with a dash as its answer if it has none.
        has_answer: true if the row has an answer or a label.
        time: time of the text; `None` if the file has no times.
    """

    origin: str
    text: str
    cluster: str
    row: Row
    has_answer: bool
    time: Time | None = None


def row_text(row: Row) -> str:
    """Return what a model is asked: all turns before the answer, or the text of a row."""
    if row.text is not None:
        return row.text
    return "\n\n".join(message.content for message in row.prompt_turns)


def read_texts(
    path: Path, field: str, cluster: str | None = None, formats: Sequence[RowFormat] = ()
) -> list[StreamText]:
    """Read the texts of a file, in the order of their times where they have some.

    Args:
        path: file of rows in any row format; an answer may be missing.
        field: argument that names the file, for errors.
        cluster: field whose value is shared by texts that are not independent.
        formats: formats of rows with a target of the adapter's head, such as `text-score`.

    Raises:
        DataError: if the file cannot be read, a row has no text, some rows have no time, or a time
            cannot be read; the message names the line.
    """
    texts = list(_texts(path, field, cluster, formats))
    if not texts:
        raise DataError(f"{field}: {path} has no texts (got an empty file). Fix: add rows")
    timed = [one for one in texts if one.time is not None]
    if not timed:
        return texts
    for one in texts:
        if one.time is None:
            raise DataError(
                f"{one.origin}: {TIME}: missing, but other rows have one (got "
                f"{len(timed)} of {len(texts)} rows with a time). Fix: add it, or remove the field "
                "from all rows"
            )
        if timed[0].time is not None and one.time.is_date != timed[0].time.is_date:
            raise DataError(
                f"{one.origin}: {TIME}: dates and numbers are mixed (got {one.time.written!r} and "
                f"{timed[0].time.written!r} of {timed[0].origin}). Fix: write all times alike"
            )
    return sorted(texts, key=lambda one: one.time.seconds if one.time else 0.0)


def _texts(
    path: Path, field: str, cluster: str | None, formats: Sequence[RowFormat]
) -> Iterator[StreamText]:
    for value, origin in read_table(TableRequest(str(path), field)):
        raw = drop_nulls(value)
        if "tokens-tags" in formats and "tokens" in raw and raw.keys().isdisjoint(("tags", "text")):
            raw |= {"text": " ".join(parse_words(raw["tokens"], origin))}
        # Without a target, a row is a text.
        has_target = (name for name in formats if set(FORMATS[name].fields) <= set(raw))
        row = parse_row(answered(raw), origin, next(has_target, "auto"))
        text = row_text(row)
        if not text.strip():
            raise DataError(f"{origin}: has no text before its answer (got {text!r}). Fix: add it")
        yield StreamText(
            origin,
            text,
            "" if cluster is None else _cluster(value, cluster, origin),
            dataclasses.replace(row, cluster=origin),
            _has_answer(raw, row),
            None if value.get(TIME) is None else parse_time(value[TIME], f"{origin}: {TIME}"),
        )


def _has_answer(raw: Mapping[str, Any], row: Row) -> bool:
    """Return true if a raw row has an answer of its own, not the dash that stands for one."""
    return row.text is None and row.has_answer and answered(raw) is raw


def _cluster(value: Mapping[str, Any], name: str, origin: str) -> str:
    if value.get(name) is None or not str(value[name]).strip():
        present = [key for key in value if value[key] is not None]
        raise DataError(
            f"{origin}: --cluster: no field {name!r} (got {list_columns(present)})."
            f"{did_you_mean(name, present)} Fix: name another field, or add it to the row"
        )
    return str(value[name])


def parse_time(value: Any, place: str) -> Time:
    """Read a time: a date in ISO 8601, in UTC unless it says otherwise, or a finite number.

    Args:
        value: a text, a number, or a date.
        place: field and line, for the error.

    Raises:
        DataError: if it is neither.
    """
    if isinstance(value, datetime):
        return _dated(value, value.isoformat())
    if isinstance(value, date):
        return _dated(datetime(value.year, value.month, value.day), value.isoformat())
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return Time(float(value), False, f"{value:g}" if isinstance(value, float) else str(value))
    if isinstance(value, str):
        try:
            return _dated(datetime.fromisoformat(value.strip()), value.strip())
        except ValueError:
            pass
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return Time(number, False, value.strip())
    raise DataError(
        f"{place}: not a date in ISO 8601 and not a number (got {value!r:.60}). Fix: write it as "
        "2026-11-30T12:00:00, or as seconds"
    )


def _dated(value: datetime, written: str) -> Time:
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return Time(aware.timestamp(), True, written)


def parse_duration(text: str) -> float:
    """Read a duration such as `1d` or `12h`, in seconds.

    Raises:
        DataError: if it is none.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", text.strip())
    if not match or not int(match[1]):
        raise DataError(
            f"--every: not a duration (got {text!r:.40}). Fix: write a number and one of "
            f"{', '.join(SECONDS)}, such as 1d"
        )
    return float(int(match[1]) * SECONDS[match[2]])


def texts_since(texts: Sequence[StreamText], since: str) -> list[StreamText]:
    """Return the texts that are not older than a date or a number.

    Raises:
        DataError: if texts have no times or other ones, or all are older.
    """
    first = parse_time(since, "--since")
    newest = texts[-1].time
    if newest is None:
        raise DataError(
            f"--since: the texts have no field `{TIME}` (got {since}). Fix: add the field, or drop "
            "--since"
        )
    if newest.is_date != first.is_date:
        kind = "dates" if newest.is_date else "numbers"
        raise DataError(
            f"--since: the times of the texts are {kind} (got {since}). Fix: write it as they are, "
            f"such as {newest.written}"
        )
    kept = [one for one in texts if one.time and one.time.seconds >= first.seconds]
    if not kept:
        raise DataError(
            f"--since: all texts are older (got {since}; the newest one is of {newest.written}). "
            "Fix: name an earlier time"
        )
    return kept
