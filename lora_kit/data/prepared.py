"""Tokenized data in Arrow: examples that are read from the file as they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lora_kit.data.rows import Row
from lora_kit.data.tokenization import IGNORED, Example

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "length": pa.int32(),
        "supervised": pa.int32(),
        "truncated": pa.bool_(),
        "origin": pa.string(),
        "cluster": pa.string(),
        "source": pa.int32(),
        "label": pa.string(),
    }
)
# Dropped rows that a refusal names.
NAMED = 3


@dataclass(frozen=True)
class SourceCounts:
    """What became of one source's rows. Tokens are those of the examples in use.

    Attributes:
        format: of its rows; several, separated by commas, where they differ.
    """

    format: str
    rows: int
    used: int
    dropped: int
    truncated: int
    tokens: int


@dataclass(frozen=True)
class Counts:
    """What became of the rows. Tokens are those of the examples in use.

    A row is an example, but for those that the chat template makes it necessary to split:
    rows - split_rows + split_examples = used + dropped.

    Attributes:
        rows: that were read; of a mixture, those that were drawn.
        used: examples that are trained on.
        dropped: examples with nothing to learn from within `max_length`.
        truncated: examples in use that were cut.
        split_rows: rows of which several examples were made.
        split_examples: what was made of them.
        sources: by the source's name.
    """

    rows: int
    used: int
    dropped: int
    truncated: int
    tokens: int
    supervised_tokens: int
    replay_rows: int = 0
    split_rows: int = 0
    split_examples: int = 0
    sources: dict[str, SourceCounts] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Counts:
        """From what `to_dict` gave."""
        sources = {name: SourceCounts(**counts) for name, counts in value["sources"].items()}
        return cls(**{**value, "sources": sources})


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """The examples of a table, read when they are asked for."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...

    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return next(_read(self.table.slice(number, 1)))

    def __iter__(self) -> Iterator[Example]:
        for batch in self.table.to_batches():
            yield from _read(batch)


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Examples in the order in which they were read, and the count of what became of the rows.

    Attributes:
        table: of `SCHEMA`, memory-mapped where the data is kept.
        counts: of rows, examples and tokens.
        digest: the sha256 of all lengths, tokens and labels, in their order.
        dropped: origins of the first rows that were dropped.
        path: the Arrow file; `None` where the data is in memory.
    """

    table: pa.Table
    counts: Counts
    digest: str
    dropped: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def examples(self) -> Examples:
        """The examples, as a sequence."""
        return Examples(self.table)

    @property
    def size(self) -> int:
        """What `batch_size` and `epochs` count: the examples."""
        return len(self.table)

    def origin(self, number: int) -> str:
        """Where one of what `size` counts came from."""
        return self.examples[number].origin

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each example, (examples,) int32."""
        return np.asarray(self.table.column("length").to_numpy())

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` with the columns `input_ids`, `labels` and `row`.

        `row` is the number of the example among `examples`.
        """
        from datasets import Dataset
        from datasets.table import InMemoryTable

        if self.path is not None:
            dataset = Dataset.from_file(str(self.path))
        else:
            dataset = Dataset(InMemoryTable(self.table))
        return dataset.select_columns(["input_ids", "labels", "row"])


class Tally:
    """Counts examples while they are made, and hashes what they hold."""

    def __init__(self, names: Sequence[str]):
        """Begin.

        Args:
            names: of the sources.
        """
        self.names = names
        self.formats: list[set[str]] = [set() for _ in names]
        # One line a source: rows, used, dropped, truncated, tokens.
        self.numbers = np.zeros((len(names), 5), dtype=np.int64)
        self.supervised = self.split_rows = self.split_examples = 0
        self.dropped: list[str] = []
        # Apart, so that the digest does not depend on where one batch ends and the next begins.
        self.hashes = [hashlib.sha256() for _ in ("length", "input_ids", "labels")]

    def add(self, row: Row, source: int, examples: Sequence[Example]) -> list[Example]:
        """Count what a row became.

        Returns:
            The examples with something to learn from.
        """
        if row.format:
            self.formats[source].add(row.format)
        used = []
        for example in examples:
            supervised = example.supervised
            if supervised:
                used.append(example)
                self.supervised += supervised
            elif len(self.dropped) < NAMED:
                self.dropped.append(example.origin)
        if len(examples) > 1:
            self.split_rows += 1
            self.split_examples += len(examples)
        self.numbers[source] += (
            1,
            len(used),
            len(examples) - len(used),
            sum(example.truncated for example in used),
            sum(len(example.input_ids) for example in used),
        )
        return used

    def add_whole(self, row: Row, source: int, examples: Sequence[Example]) -> bool:
        """Count what a row became, and whether all of its examples have something to learn from."""
        if all(example.supervised for example in examples):
            self.add(row, source, examples)
            return True
        unlearned = [replace(one, labels=()) for one in examples]
        self.add(row, source, unlearned)
        return False

    def record(self, examples: Sequence[Example], sources: Sequence[int]) -> pa.RecordBatch:
        """Examples as they are written, and hashed."""
        first = int(self.numbers[:, 1].sum()) - len(examples)
        lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int32)
        ends = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        tokens, labels = (
            np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(ends[-1]))
            for lists in ([e.input_ids for e in examples], [e.labels for e in examples])
        )
        for digest, values in zip(self.hashes, (lengths, tokens, labels), strict=True):
            digest.update(values.tobytes())
        columns = [
            pa.array(np.arange(first, first + len(examples))),
            pa.ListArray.from_arrays(pa.array(ends), pa.array(tokens)),
            pa.ListArray.from_arrays(pa.array(ends), pa.array(labels)),
            pa.array(lengths),
            pa.array(np.add.reduceat(labels != IGNORED, ends[:-1], dtype=np.int32)),
            pa.array([example.truncated for example in examples], pa.bool_()),
            pa.array([example.origin for example in examples], pa.string()),
            pa.array([example.cluster for example in examples], pa.string()),
            pa.array(sources, pa.int32()),
            pa.array([example.label for example in examples], pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def digest(self) -> str:
        """The sha256 of all that was recorded."""
        return hashlib.sha256(b"".join(one.digest() for one in self.hashes)).hexdigest()

    def counts(self) -> Counts:
        """All of it."""
        rows, used, dropped, truncated, tokens = self.numbers.sum(axis=0).tolist()
        return Counts(
            rows=rows,
            used=used,
            dropped=dropped,
            truncated=truncated,
            tokens=tokens,
            supervised_tokens=self.supervised,
            split_rows=self.split_rows,
            split_examples=self.split_examples,
            sources={
                name: SourceCounts(", ".join(sorted(self.formats[i])), *self.numbers[i].tolist())
                for i, name in enumerate(self.names)
            },
        )


def _read(batch: Any) -> Iterator[Example]:
    names = ("input_ids", "labels", "truncated", "origin", "cluster", "source", "label")
    columns = (batch.column(name).to_pylist() for name in names)
    for input_ids, labels, *rest in zip(*columns, strict=True):
        yield Example(tuple(input_ids), tuple(labels), *rest)
