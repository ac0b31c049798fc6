"""CSV and TSV files: every field is a text as written, every row has the fields of the header."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from lora_kit.data.columns import list_columns
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import whole_file
from lora_kit.runtime.hash_cache import cached_sha256
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.locks import one_process_at_a_time

# Options of `csv.reader`, by file ending. Tab-separated files have no quoting: a quote is a text.
DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
# To be raised when the same files are to give another table.
VERSION = 2
# Rows of a record batch.
BATCH = 1000
# Limit on the bytes of a field that the library has beside its default of 128 KiB.
LONGEST_FIELD = 2**31 - 1


def load_delimited(path: Path, kind: str, original: Path) -> Any:
    """Load a file as a memory-mapped data set of texts, found in the cache by its content.

    Args:
        path: file to read.
        kind: ending of the file, one of `DIALECTS`.
        original: path in error messages.

    Raises:
        DataError: if the file cannot be read or has no header, or a row has another number of
            fields; the message names the line.
    """
    import datasets

    try:
        content = json_sha256([VERSION, kind, cached_sha256([path])])
    except OSError as error:
        raise _unreadable(original, error) from error
    target = cache_directory() / "tables" / f"{content}.arrow"
    with one_process_at_a_time(target):
        if not target.is_file():
            with whole_file(target) as temporary:
                _convert(path, kind, original, temporary)
    return datasets.Dataset.from_file(str(target))


def require_same_columns(paths: Sequence[Path], kind: str, originals: Sequence[Path]) -> None:
    """Refuse files of one folder with other columns than the first.

    Args:
        paths: files to read.
        kind: ending of the files, one of `DIALECTS`.
        originals: paths in error messages.

    Raises:
        DataError: naming the file, or if one has no header.
    """
    columns = _header(paths[0], kind, originals[0])
    for path, original in zip(paths[1:], originals[1:], strict=True):
        header = _header(path, kind, original)
        if set(header) != set(columns):
            raise DataError(
                f"{original}:1: the columns differ from those of {originals[0]} (got "
                f"{list_columns(header)} and {list_columns(columns)}). Fix: name the files as "
                "sources of their own, or correct a header"
            )


def _convert(path: Path, kind: str, original: Path, target: Path) -> None:
    """Write the rows of a file as an Arrow stream of text columns."""
    columns = _header(path, kind, original)
    schema = pa.schema([(column, pa.string()) for column in columns])
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        reader = _rows(path, kind, original, columns)
        while rows := list(islice(reader, BATCH)):
            texts = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            writer.write_batch(pa.record_batch(texts, schema=schema))


def _header(path: Path, kind: str, original: Path) -> list[str]:
    line, columns = next(_records(path, kind, original), (1, []))
    if not columns or not all(map(str.strip, columns)) or len(set(columns)) < len(columns):
        raise DataError(
            f"{original}:{line}: the first line must name the columns, each once (got "
            f"{list_columns(columns) if columns else 'nothing'}). Fix: add or correct the header"
        )
    return columns


def _rows(path: Path, kind: str, original: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield the rows below the header.

    Raises:
        DataError: if a row repeats the header or has another number of fields.
    """
    records = _records(path, kind, original)
    next(records)
    for line, fields in records:
        if len(fields) < len(columns) and not "".join(fields).strip():
            continue
        # Files that were joined keep the mark at the start of each.
        if [fields[0].removeprefix("\ufeff"), *fields[1:]] == columns:
            raise DataError(
                f"{original}:{line}: the header stands a second time (got {', '.join(columns)}). "
                "Fix: remove the line"
            )
        if len(fields) != len(columns):
            quoting = ", and quote a field that has a comma" if kind == ".csv" else ""
            raise DataError(
                f"{original}:{line}: the row must have a field for each of the {len(columns)} "
                f"columns {', '.join(columns)} (got {len(fields)} fields). Fix: correct the row"
                f"{quoting}"
            )
        yield fields


def _records(path: Path, kind: str, original: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each record that is not blank, with the line where it begins.

    Raises:
        DataError: if the file cannot be read, or a record is malformed.
    """
    csv.field_size_limit(LONGEST_FIELD)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, **DIALECTS[kind])
            for fields in reader:
                if any("\0" in field for field in fields):
                    raise DataError(
                        f"{original}:{line}: a NUL byte is no text (got {fields!r:.60}). Fix: "
                        "remove it, or rename the file if it has another format"
                    )
                if fields:
                    yield line, fields
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(
            f"{original}:{_undecodable_line(path)}: not UTF-8 text (got {error.reason}). Fix: "
            "convert the file to UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{original}:{line}: cannot be read as {kind[1:]} (got {error}). Fix: close each quote "
            "and write a quote within quotes twice"
        ) from error
    except OSError as error:
        raise _unreadable(original, error) from error


def _undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _unreadable(original: Path, error: OSError) -> DataError:
    return DataError(
        f"{original}: cannot be read ({error}). Fix: check that the file exists and is readable"
    )
