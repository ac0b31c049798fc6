"""Tables of any kind, rows by number: files, folders, directories of `datasets`, hub ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lora_kit.data.files.datafiles import ENDINGS, LINES, data_file, files_in, kind_of
from lora_kit.data.files.lines import index_lines, index_list
from lora_kit.data.files.readers import (
    READERS,
    SAVED,
    SAVED_SPLITS,
    load_files,
    load_hub,
    load_saved,
    stream_hub,
)
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.hashes import file_sha256, json_sha256

# Rows that are read at a time.
BLOCK = 1000


class Table(Protocol):
    """Rows by number, of which none is in memory before it is asked for."""

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> list[Any]:
        """Some rows, as they stand there."""

    def origin(self, number: int) -> str:
        """Where a row stands, such as `quiz.jsonl:12`."""

    def digest(self) -> str:
        """What changes with the content."""


@dataclass(frozen=True)
class ArrowTable:
    """A `datasets.Dataset`, memory-mapped."""

    source: str
    dataset: Any
    fingerprint: Callable[[], str]

    @property
    def names(self) -> dict[str, Sequence[str]]:
        """The classes' names of each column that holds numbers of classes."""
        features = self.dataset.features
        return {c: feature.names for c, feature in features.items() if hasattr(feature, "names")}

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, numbers: Sequence[int]) -> list[Any]:
        """Some rows."""
        columns = self.dataset[[int(number) for number in numbers]]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def origin(self, number: int) -> str:
        """`source[number]`."""
        return f"{self.source}[{number}]"

    def digest(self) -> str:
        """The sha256 of its files, or what the library knows it by."""
        return self.fingerprint()


@dataclass(frozen=True)
class Joined:
    """Several tables, one after the other."""

    tables: tuple[Table, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return self.starts[-1]

    def take(self, numbers: Sequence[int]) -> list[Any]:
        """Some rows; those beside one another in one table are read together."""
        parts = [self._place(number) for number in numbers]
        rows: list[Any] = []
        start = 0
        for end in range(1, len(parts) + 1):
            if end == len(parts) or parts[end][0] != parts[start][0]:
                table = self.tables[parts[start][0]]
                rows += table.take([number for _, number in parts[start:end]])
                start = end
        return rows

    def origin(self, number: int) -> str:
        """As its table says."""
        table, within = self._place(number)
        return self.tables[table].origin(within)

    def digest(self) -> str:
        """Of all tables, in their order."""
        return _sha256([table.digest() for table in self.tables])

    def _place(self, number: int) -> tuple[int, int]:
        table = int(np.searchsorted(self.starts, number, side="right")) - 1
        return table, int(number) - self.starts[table]


@dataclass(frozen=True)
class Wanted:
    """Which rows of a source.

    Attributes:
        source: a file, a folder, or a hub id.
        field: of the recipe or suite, for messages.
        split: of a source that has splits.
        subset: of a hub id, its configuration.
        revision: of a hub id.
        streamed: of a hub id, rows to fetch; by default all.
        as_text: whether the fields of a CSV file stay the texts that they are.
    """

    source: str
    field: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    streamed: int | None = None
    as_text: bool = False


def open_table(wanted: Wanted) -> Table:
    """Open a source.

    Raises:
        DataError: if there is no such source or split, or it cannot be read.
    """
    source, field = wanted.source, wanted.field
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / SAVED).is_file() or (path / SAVED_SPLITS).is_file():
            return _saved(path, wanted)
        return _folder(path, wanted)
    if kind_of(path):
        if not path.is_file():
            raise DataError(f"{field}: {path}: no such file")
        return _files([path], str(path), wanted)
    if is_hub_id(source):
        return _hub(wanted)
    raise DataError(
        f"{field}: {source}: no built-in source, no file ({ENDINGS}), no folder of "
        "such files or one that `datasets` saved, and no hub id (owner/name)"
    )


def read_table(
    source: str, field: str, subset: str | None, split: str, revision: str | None
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each row of a source and where it stands.

    Args:
        source: a file, a folder, or a hub id.
        field: of the suite, for messages.
        subset: of a hub id, its configuration.
        split: of a source that has splits.
        revision: of a hub id.

    Raises:
        DataError: if it cannot be opened, or a row is no mapping, with its place.
    """
    table = open_table(Wanted(source, field, split, subset, revision))
    for start in range(0, len(table), BLOCK):
        numbers = range(start, min(start + BLOCK, len(table)))
        for number, value in zip(numbers, table.take(numbers), strict=True):
            if not isinstance(value, Mapping):
                found = type(value).__name__
                raise DataError(f"{table.origin(number)}: an object is wanted, found {found}")
            yield value, table.origin(number)


def is_hub_id(source: str) -> bool:
    """Whether a source is `owner/name`, and neither here nor a file by its ending."""
    path = Path(source).expanduser()
    return source.count("/") == 1 and not kind_of(path) and not path.exists()


def has_splits(source: str) -> bool:
    """Whether a split has to be named: hub ids, and what `datasets` saved with its splits."""
    return is_hub_id(source) or (Path(source).expanduser() / SAVED_SPLITS).is_file()


def _files(paths: Sequence[Path], source: str, wanted: Wanted) -> Table:
    """The rows of files of one kind."""
    kind = kind_of(paths[0])
    files = [data_file(path) for path in paths]
    if kind in READERS:
        dataset = load_files([file.path for file in files], kind, paths, wanted.as_text)
        return ArrowTable(
            source, dataset, lambda: _sha256([file_sha256(file.path) for file in files])
        )
    index = index_lines if kind in LINES else index_list
    tables: list[Table] = [index(file.path, file.given) for file in files]
    if len(tables) == 1:
        return tables[0]
    starts = np.cumsum([0, *map(len, tables)]).tolist()
    return Joined(tuple(tables), tuple(starts))


def _folder(path: Path, wanted: Wanted) -> Table:
    files = files_in(path, wanted.field)
    kinds = sorted({kind_of(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{wanted.field}: {path}: files of several kinds ({', '.join(kinds)}); name one of "
            "them, or keep one kind in a folder"
        )
    return _files(files, str(path), wanted)


def _saved(path: Path, wanted: Wanted) -> Table:
    dataset = load_saved(path, wanted.split, wanted.field)
    files = [Path(file["filename"]) for file in dataset.cache_files]
    return ArrowTable(
        wanted.source, dataset, lambda: _sha256([file_sha256(file) for file in files])
    )


def _hub(wanted: Wanted) -> Table:
    place = (wanted.source, wanted.subset, wanted.split, wanted.revision, wanted.field)
    if wanted.streamed is None:
        dataset = load_hub(*place)
        return ArrowTable(wanted.source, dataset, lambda: str(dataset._fingerprint))
    fetched = stream_hub(*place, wanted.streamed)
    return ArrowTable(wanted.source, fetched, lambda: _sha256(fetched.to_list()))


def _sha256(value: object) -> str:
    return json_sha256(value)
