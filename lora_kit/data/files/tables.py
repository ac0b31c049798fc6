"""Tables with random access to rows: files, folders, saved data sets, hub ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lora_kit.data.columns import class_name
from lora_kit.data.files.datafiles import (
    ENDINGS,
    LINES,
    PARQUET,
    decompressed_file,
    file_kind,
    list_data_files,
    require_text_path,
)
from lora_kit.data.files.delimited import DIALECTS, load_delimited, require_same_columns
from lora_kit.data.files.lines import index_json, index_lines
from lora_kit.data.files.readers import (
    SAVED,
    SAVED_SPLITS,
    TableRequest,
    load_hub,
    load_parquet,
    load_saved,
)
from lora_kit.runtime.errors import DataError, did_you_mean
from lora_kit.runtime.hash_cache import cached_sha256
from lora_kit.runtime.hashes import json_sha256

# Rows read per block.
BLOCK = 1000


class Table(Protocol):
    """Random access to rows, each read on access."""

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> list[Any]:
        """Read the raw rows of the given indices."""

    def origin(self, number: int) -> str:
        """Return the location of a row, such as `quiz.jsonl:12`."""

    def digest(self) -> str:
        """Return a hash of the content."""


@dataclass(frozen=True)
class ArrowTable:
    """Table of a memory-mapped `datasets.Dataset`."""

    source: str
    dataset: Any
    fingerprint: Callable[[], str]

    @property
    def names(self) -> dict[str, Sequence[str]]:
        """Return the class names of each column of class indices, or of lists of them."""
        features = self.dataset.features
        # The classes of a list, such as those of words, are those of its elements.
        elements = {c: getattr(one, "feature", one) for c, one in features.items()}
        return {c: one.names for c, one in elements.items() if hasattr(one, "names")}

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, numbers: Sequence[int]) -> list[Any]:
        """Read the rows of the given indices, without the null fields of nested objects.

        Raises:
            DataError: if a text is not UTF-8; the message names the row.
        """
        try:
            columns = self.dataset[[int(number) for number in numbers]]
        except UnicodeDecodeError as error:
            if len(numbers) > 1:
                return [row for number in numbers for row in self.take([number])]
            raise DataError(
                f"{self.origin(numbers[0])}: not UTF-8 text (got {error.reason}). Fix: write the "
                "texts as UTF-8"
            ) from error
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        # Arrow gives every object the fields of all objects, null if the row had none.
        return [{key: _without_nulls(v) for key, v in row.items()} for row in rows]

    def origin(self, number: int) -> str:
        """Return the location of a row: `source[number]`."""
        return f"{self.source}[{number}]"

    def digest(self) -> str:
        """Return the sha256 of the files or rows, or the fingerprint of the library."""
        return self.fingerprint()


@dataclass(frozen=True)
class ConcatenatedTable:
    """Concatenation of several tables."""

    tables: tuple[Table, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return self.starts[-1]

    def take(self, numbers: Sequence[int]) -> list[Any]:
        """Read the rows of the given indices, with one call per run of rows from one table."""
        rows: list[Any] = []
        for table, group in groupby(map(self._place, numbers), key=lambda place: place[0]):
            rows += self.tables[table].take([number for _, number in group])
        return rows

    def origin(self, number: int) -> str:
        """Return the location of a row, as given by its table."""
        table, within = self._place(number)
        return self.tables[table].origin(within)

    def digest(self) -> str:
        """Return a hash of the digests of all tables, in order."""
        return json_sha256([table.digest() for table in self.tables])

    def _place(self, number: int) -> tuple[int, int]:
        table = int(np.searchsorted(self.starts, number, side="right")) - 1
        return table, int(number) - self.starts[table]


def class_names(table: Table) -> dict[str, Sequence[str]]:
    """Return the names of classes by column, for columns of class indices.

    Raises:
        DataError: if the files of a folder name them differently.
    """
    tables = table.tables if isinstance(table, ConcatenatedTable) else (table,)
    found = [one.names if isinstance(one, ArrowTable) else {} for one in tables]
    for one, names in zip(tables, found, strict=True):
        if names != found[0]:
            raise DataError(
                f"{one.origin(0)}: other names of classes than in {tables[0].origin(0)} (got "
                f"{names} and {found[0]}). Fix: write both files with the same classes"
            )
    return found[0]


def open_table(request: TableRequest) -> Table:
    """Open a table.

    Raises:
        DataError: if the source or the split does not exist, or cannot be read.
    """
    source, field = request.source, request.field
    path = Path(source).expanduser()
    require_text_path(path, field)
    if path.is_dir():
        if (path / SAVED).is_file() or (path / SAVED_SPLITS).is_file():
            return _saved(path, request)
        return _folder(path, request)
    if file_kind(path):
        if not path.is_file():
            raise DataError(f"{field}: no such file (got {path}). Fix: correct the path")
        return _files([path])
    if is_hub_id(source):
        return _hub(request)
    built_in = f"a built-in source ({', '.join(request.built_in)}), " if request.built_in else ""
    raise DataError(
        f"{field}: unknown source (got {source}).{did_you_mean(source, request.built_in)} Fix: "
        f"name {built_in}a file ({ENDINGS}), a folder of such files or one saved by `datasets`, or "
        "a hub id (owner/name)"
    )


def read_table(
    request: TableRequest, indices: Collection[str] = ()
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each raw row of a source with its location.

    Args:
        request: source to open.
        indices: columns of class indices that are to stay indices; others are read as the names
            that the table has for them.

    Raises:
        DataError: if the source cannot be opened, a row is not an object, or a class index has no
            name.
    """
    table = open_table(request)
    names = {c: of_column for c, of_column in class_names(table).items() if c not in indices}
    for start in range(0, len(table), BLOCK):
        numbers = range(start, min(start + BLOCK, len(table)))
        for number, value in zip(numbers, table.take(numbers), strict=True):
            if not isinstance(value, Mapping):
                raise DataError(
                    f"{table.origin(number)}: a row must be an object (got "
                    f"{type(value).__name__}). Fix: correct the row"
                )
            origin = table.origin(number)
            named = {c: class_name(value, c, names[c], origin) for c in names}
            yield {**value, **named}, origin


def is_hub_id(source: str) -> bool:
    """Return True for `owner/name` that is no existing path and has no file ending of rows."""
    path = Path(source).expanduser()
    return source.count("/") == 1 and not file_kind(path) and not path.exists()


def has_splits(source: str) -> bool:
    """Return True if a source has splits: hub ids, and data sets saved with splits."""
    return is_hub_id(source) or (Path(source).expanduser() / SAVED_SPLITS).is_file()


def _files(paths: Sequence[Path]) -> Table:
    """Open files of one kind as one table."""
    kind = file_kind(paths[0])
    files = [decompressed_file(path) for path in paths]
    if kind in DIALECTS:
        require_same_columns(files, kind, paths)
    tables = [_file(file, kind, path) for file, path in zip(files, paths, strict=True)]
    if len(tables) == 1:
        return tables[0]
    starts = np.cumsum([0, *map(len, tables)]).tolist()
    return ConcatenatedTable(tuple(tables), tuple(starts))


def _file(file: Path, kind: str, path: Path) -> Table:
    """Open one file, with its own types of columns.

    Args:
        file: file to read, decompressed.
        kind: ending of the file.
        path: path in error messages and origins.
    """
    if kind in DIALECTS or kind == PARQUET:
        load = load_parquet(file, path) if kind == PARQUET else load_delimited(file, kind, path)
        return ArrowTable(str(path), load, lambda: json_sha256(cached_sha256([file])))
    return index_lines(file, path) if kind in LINES else index_json(file, path)


def _folder(path: Path, request: TableRequest) -> Table:
    files = list_data_files(path, request.field)
    kinds = sorted({file_kind(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{request.field}: {path}: the files are of several kinds (got {', '.join(kinds)}). "
            "Fix: name one file, or put each kind into a folder of its own"
        )
    return _files(files)


def _saved(path: Path, request: TableRequest) -> Table:
    dataset = load_saved(path, request.split, request.field)
    files = [Path(file["filename"]) for file in dataset.cache_files]
    return ArrowTable(request.source, dataset, lambda: json_sha256(cached_sha256(files)))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


def _hub(request: TableRequest) -> Table:
    dataset = load_hub(request)
    if request.streamed_rows is None:
        return ArrowTable(request.source, dataset, lambda: str(dataset._fingerprint))
    return ArrowTable(request.source, dataset, lambda: json_sha256(dataset.to_list()))
