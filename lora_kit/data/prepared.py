"""Tokenized data as Arrow tables, with examples read on access."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lora_kit.data.rows import Row
from lora_kit.data.supervision import IGNORE_INDEX, Example

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
        "targets": pa.list_(pa.float64()),
    }
)
# Dropped rows named in an error message.
MAX_NAMED = 3


@dataclass(frozen=True)
class SourceCounts:
    """Counts of rows and examples of one source.

    Attributes:
        format: format of the rows; several, separated by commas, if they differ.
        rows: rows read.
        used: examples to train on.
        dropped: examples without a supervised token within `max_length`.
        truncated: truncated examples among those used.
        tokens: tokens of the used examples.
        unused: rows with a column or a field of a turn that is not used, by its name.
    """

    format: str
    rows: int
    used: int
    dropped: int
    truncated: int
    tokens: int
    unused: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """Counts of rows and examples.

    One row gives one example, unless it has to be split because of the chat template or its
    length: rows - split_rows + split_examples = used + dropped. A preference pair gives two.

    Attributes:
        rows: rows read; for a mixture, rows drawn.
        used: examples to train on.
        dropped: examples without a supervised token within `max_length`.
        truncated: truncated examples among those used.
        tokens: tokens of the used examples.
        supervised_tokens: tokens of the used examples that have a label.
        replay_rows: replay rows among `rows`.
        split_rows: rows that gave several examples.
        split_examples: examples made of the split rows.
        sources: counts by source name.
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
        """Return the counts as a JSON-serializable dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Counts:
        """Restore counts from the output of `to_dict`."""
        sources = {name: SourceCounts(**counts) for name, counts in value["sources"].items()}
        return cls(**{**value, "sources": sources})


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """Sequence of the examples of a table, each read on access."""

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
    """Tokenized examples in reading order, with counts.

    Attributes:
        table: table with `SCHEMA`, memory-mapped if the data is cached on disk.
        counts: counts of rows, examples and tokens.
        digest: sha256 of all lengths, tokens and labels, in order.
        dropped: origins of the first dropped rows.
        path: the Arrow file; `None` if the data is in memory.
    """

    table: pa.Table
    counts: Counts
    digest: str
    dropped: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def examples(self) -> Examples:
        """Return the examples as a sequence."""
        return Examples(self.table)

    @property
    def size(self) -> int:
        """Return the number of examples, the unit of `batch_size` and `epochs`."""
        return len(self.table)

    def origin(self, number: int) -> str:
        """Return the origin of the row behind an example."""
        return self.examples[number].origin

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Return the tokens of each example, (examples,) int32."""
        return np.asarray(self.table.column("length").to_numpy())

    def to_dataset(self) -> Any:
        """Return a `datasets.Dataset` with the columns of an example, and `row`.

        `row` is the index into `examples`.
        """
        from datasets import Dataset
        from datasets.table import InMemoryTable

        if self.path is not None:
            dataset = Dataset.from_file(str(self.path))
        else:
            dataset = Dataset(InMemoryTable(self.table))
        return dataset.select_columns(["input_ids", "labels", "targets", "row"])


class Tally:
    """Running counts and hash of examples while rows are tokenized."""

    def __init__(self, names: Sequence[str]):
        """Start with all counts at zero.

        Args:
            names: source names.
        """
        self.names = names
        self.formats: list[set[str]] = [set() for _ in names]
        # One row per source; columns: rows, used, dropped, truncated, tokens.
        self.numbers = np.zeros((len(names), 5), dtype=np.int64)
        self.supervised = self.split_rows = self.split_examples = 0
        self.unused: list[Counter[str]] = [Counter() for _ in names]
        self.dropped: list[str] = []
        # Separate hashes keep the digest independent of the boundaries between batches.
        self.hashes = [hashlib.sha256() for _ in ("length", "input_ids", "labels")]
        self.targets = hashlib.sha256()

    def add(
        self, row: Row, source: int, examples: Sequence[Example], together: bool = False
    ) -> list[Example]:
        """Count a row and its examples.

        Args:
            row: the row.
            source: index of its source.
            examples: examples made of the row.
            together: if true, the examples are one unit: all are dropped if any has to be.

        Returns:
            The examples that have a supervised token.
        """
        if row.format:
            self.formats[source].add(row.format)
        self.unused[source].update({*row.unused, *(n for one in examples for n in one.unwritten)})
        supervised = [example.supervised for example in examples]
        used = [one for one, tokens in zip(examples, supervised, strict=True) if tokens]
        if together and len(used) < len(examples):
            used = []
        if used:
            self.supervised += sum(supervised)
        if len(used) < len(examples) and len(self.dropped) < MAX_NAMED:
            self.dropped.append(row.origin)
        if len(examples) > 1 and not together:
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

    def record(self, examples: Sequence[Example], sources: Sequence[int]) -> pa.RecordBatch:
        """Hash examples and return them as a batch of `SCHEMA`.

        Args:
            examples: the latest examples that `add` returned.
            sources: index of each example's source.
        """
        first = int(self.numbers[:, 1].sum()) - len(examples)
        lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int32)
        ends = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        tokens, labels = (
            np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(ends[-1]))
            for lists in ([e.input_ids for e in examples], [e.labels for e in examples])
        )
        for digest, values in zip(self.hashes, (lengths, tokens, labels), strict=True):
            digest.update(values.tobytes())
        targets = [value for example in examples for value in example.targets]
        self.targets.update(np.array(targets, dtype=np.float64).tobytes())
        columns = [
            pa.array(np.arange(first, first + len(examples))),
            pa.ListArray.from_arrays(pa.array(ends), pa.array(tokens)),
            pa.ListArray.from_arrays(pa.array(ends), pa.array(labels)),
            pa.array(lengths),
            pa.array(np.add.reduceat(labels != IGNORE_INDEX, ends[:-1], dtype=np.int32)),
            pa.array([example.truncated for example in examples], pa.bool_()),
            pa.array([example.origin for example in examples], pa.string()),
            pa.array([example.cluster for example in examples], pa.string()),
            pa.array(sources, pa.int32()),
            pa.array([example.label for example in examples], pa.string()),
            pa.array([example.targets for example in examples], pa.list_(pa.float64())),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def digest(self) -> str:
        """Return the sha256 of all recorded examples."""
        parts = [one.digest() for one in self.hashes]
        if self.targets.digest() != hashlib.sha256().digest():
            parts.append(self.targets.digest())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def counts(self) -> Counts:
        """Return the counts of all sources."""
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
                name: replace(
                    SourceCounts(", ".join(sorted(self.formats[i])), *self.numbers[i].tolist()),
                    unused=dict(self.unused[i]),
                )
                for i, name in enumerate(self.names)
            },
        )


def _read(batch: Any) -> Iterator[Example]:
    names = ("input_ids", "labels", "truncated", "origin", "cluster", "source", "label")
    columns = [batch.column(name).to_pylist() for name in names]
    columns.append([tuple(values) for values in batch.column("targets").to_pylist()])
    for input_ids, labels, *rest in zip(*columns, strict=True):
        yield Example(tuple(input_ids), tuple(labels), *rest)
