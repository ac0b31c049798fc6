"""Rows of one or more sources as one sequence, read when they are asked for."""

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
class Source:
    """An opened source.

    Attributes:
        name: what the recipe calls it.
        size: rows that it has.
        take: reads some of them.
        digest: what changes with its content, or with how it is read.
    """

    name: str
    size: int
    take: Callable[[Sequence[int]], list[Row]]
    digest: Callable[[], str]


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Rows of one or more sources, read when they are asked for.

    Attributes:
        sources: where they are.
        parts: (rows,) int32, the source of each.
        numbers: (rows,) int64, which of the source's rows it is.
    """

    sources: tuple[Source, ...]
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
        """All of them, those of one source together, in their order."""
        found: dict[int, Row] = {}
        for part in np.unique(self.parts):
            places = np.flatnonzero(self.parts == part)
            rows = self.sources[part].take(self.numbers[places].tolist())
            found.update(zip(places.tolist(), rows, strict=True))
        return [found[place] for place in range(len(self))]

    def only(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of them; `chosen` is (rows,)."""
        return Rows(self.sources, self.parts[chosen], self.numbers[chosen])

    def changed(
        self, which: Callable[[Source], bool], change: Callable[[Row], Row], digest: str
    ) -> Rows:
        """The same rows of the same sources, some changed when they are read.

        Args:
            which: of the sources.
            change: what becomes of a row of theirs.
            digest: what changes with `change`.
        """
        sources = [_changed(one, change, digest) if which(one) else one for one in self.sources]
        return Rows(tuple(sources), self.parts, self.numbers)

    def formats(self) -> dict[str, str]:
        """The format of each source's first row, by the source's name."""
        firsts = [int(np.flatnonzero(self.parts == part)[0]) for part in np.unique(self.parts)]
        return {self.sources[self.parts[i]].name: self[i].format for i in firsts}

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> Rows:
        """Rows that were made here, as a source of their own."""
        source = Source(
            name,
            len(rows),
            lambda numbers: [rows[number] for number in numbers],
            lambda: hashlib.sha256(repr(list(rows)).encode()).hexdigest(),
        )
        return cls((source,), np.zeros(len(rows), np.int32), np.arange(len(rows), dtype=np.int64))

    def digest(self) -> str:
        """The sha256 of what would be read."""
        digest = hashlib.sha256("\n".join(source.digest() for source in self.sources).encode())
        digest.update(self.parts.tobytes())
        digest.update(self.numbers.tobytes())
        return digest.hexdigest()


def _changed(source: Source, change: Callable[[Row], Row], digest: str) -> Source:
    return dataclasses.replace(
        source,
        take=lambda numbers: [change(row) for row in source.take(numbers)],
        digest=lambda: json_sha256([source.digest(), digest]),
    )


def joined(several: Sequence[Rows]) -> Rows:
    """Rows one after the other; sources of one name get numbers."""
    sources: list[Source] = []
    parts = []
    for rows in several:
        parts.append(rows.parts + np.int32(len(sources)))
        sources += rows.sources
    return Rows(
        tuple(_distinct(sources)),
        np.concatenate([np.zeros(0, np.int32), *parts]),
        np.concatenate([np.zeros(0, np.int64), *(rows.numbers for rows in several)]),
    )


def _distinct(sources: Sequence[Source]) -> list[Source]:
    seen: dict[str, int] = {}
    named = []
    for source in sources:
        seen[source.name] = seen.get(source.name, 0) + 1
        count = seen[source.name]
        name = source.name if count == 1 else f"{source.name} ({count})"
        named.append(Source(name, source.size, source.take, source.digest))
    return named
