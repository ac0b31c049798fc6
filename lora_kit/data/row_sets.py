"""Sequences of rows from one or more sources, read on access."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.files.tables import BLOCK
from lora_kit.data.rows import Row
from lora_kit.runtime.hashes import json_sha256


@dataclass(frozen=True, eq=False)
class RowSource:
    """Opened source of rows.

    Attributes:
        name: name of the source in the recipe.
        size: number of rows.
        take: function that reads the rows of the given indices.
        digest: function that returns a hash of the content and of the reading options.
    """

    name: str
    size: int
    take: Callable[[Sequence[int]], list[Row]]
    digest: Callable[[], str]


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Sequence of rows from one or more sources, read on access.

    Attributes:
        sources: the sources.
        parts: (rows,) int32, index of each row's source.
        numbers: (rows,) int64, index of each row in its source.
    """

    sources: tuple[RowSource, ...]
    parts: NDArray[np.int32]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self.sources, self.parts[index], self.numbers[index])
        return self.sources[int(self.parts[index])].take([int(self.numbers[index])])[0]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK].read()

    def read(self) -> list[Row]:
        """Read all rows in order, with one call per source."""
        rows_at: dict[int, Row] = {}
        for part in np.unique(self.parts):
            places = np.flatnonzero(self.parts == part)
            rows = self.sources[part].take(self.numbers[places].tolist())
            rows_at.update(zip(places.tolist(), rows, strict=True))
        return [rows_at[place] for place in range(len(self))]

    def select(self, chosen: NDArray[np.bool_]) -> Rows:
        """Return the rows where `chosen`, (rows,) bool, is true."""
        return Rows(self.sources, self.parts[chosen], self.numbers[chosen])

    def map_rows(
        self, which: Callable[[RowSource], bool], change: Callable[[Row], Row], digest: str
    ) -> Rows:
        """Return the rows with a function applied to those of some sources on reading.

        Args:
            which: predicate that selects the sources.
            change: function applied to each row of the selected sources.
            digest: hash that identifies `change`.
        """
        sources = [_map_source(one, change, digest) if which(one) else one for one in self.sources]
        return Rows(tuple(sources), self.parts, self.numbers)

    def formats(self) -> dict[str, str]:
        """Return the format of each source's first row, by source name."""
        firsts = [int(np.flatnonzero(self.parts == part)[0]) for part in np.unique(self.parts)]
        return {self.sources[self.parts[i]].name: self[i].format for i in firsts}

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> Rows:
        """Create a sequence with one source from rows in memory."""
        source = RowSource(
            name,
            len(rows),
            lambda numbers: [rows[number] for number in numbers],
            lambda: hashlib.sha256(repr(list(rows)).encode()).hexdigest(),
        )
        return cls((source,), np.zeros(len(rows), np.int32), np.arange(len(rows), dtype=np.int64))

    def digest(self) -> str:
        """Return a sha256 that identifies the rows, without reading them all."""
        digest = hashlib.sha256("\n".join(source.digest() for source in self.sources).encode())
        digest.update(self.parts.tobytes())
        digest.update(self.numbers.tobytes())
        return digest.hexdigest()


def _map_source(source: RowSource, change: Callable[[Row], Row], digest: str) -> RowSource:
    return dataclasses.replace(
        source,
        take=lambda numbers: [change(row) for row in source.take(numbers)],
        digest=lambda: json_sha256([source.digest(), digest]),
    )


def concatenate_rows(sequences: Sequence[Rows]) -> Rows:
    """Concatenate row sequences; sources that share a name get a number appended."""
    sources: list[RowSource] = []
    parts = []
    for rows in sequences:
        parts.append(rows.parts + np.int32(len(sources)))
        sources += rows.sources
    return Rows(
        tuple(_with_distinct_names(sources)),
        np.concatenate([np.zeros(0, np.int32), *parts]),
        np.concatenate([np.zeros(0, np.int64), *(rows.numbers for rows in sequences)]),
    )


def _with_distinct_names(sources: Sequence[RowSource]) -> list[RowSource]:
    seen: dict[str, int] = {}
    named = []
    for source in sources:
        seen[source.name] = seen.get(source.name, 0) + 1
        count = seen[source.name]
        name = source.name if count == 1 else f"{source.name} ({count})"
        named.append(RowSource(name, source.size, source.take, source.digest))
    return named


def read_blocks(rows: Sequence[Row]) -> Iterator[tuple[list[Row], list[int]]]:
    """Yield blocks of rows with the source index of each row."""
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        if isinstance(block, Rows):
            yield block.read(), block.parts.tolist()
        else:
            yield list(block), [0] * len(block)
