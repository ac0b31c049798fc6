"""The ledger: one row for each (arm, suite, task, item); everything else is computed from it.

It is written and read a group of rows at a time, so that it may be larger than memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import whole_file

DRIFT = "drift"
"""The arm whose score is how far the adapter's distributions are from the base's: their KL."""

_NAMED_TEXTS = pa.map_(pa.string(), pa.string())
_NAMED_NUMBERS = pa.map_(pa.string(), pa.float64())
SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("suite", pa.string()),
        ("task", pa.string()),
        ("item", pa.string()),
        ("cluster", pa.string()),
        ("score", pa.float64()),
        ("output", pa.string()),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("slices", _NAMED_TEXTS),
        ("measures", _NAMED_NUMBERS),
        ("log_likelihoods", pa.list_(pa.float64())),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.int64()),
    ]
)
# A group of rows in the file: at most so many, and about so many characters of texts.
GROUP_ROWS = 16_384
GROUP_CHARACTERS = 16_000_000
# Rows that are made Python objects at a time: without texts, and with them.
BATCH_ROWS = {False: 16_384, True: 1_024}
_PLACE = ("suite", "task")
# What judging does without unless it asks for it, and what stands there instead.
_LEFT_OUT = {"output": "", "prompt": "", "reference": "", "tokens": 0, "seconds": 0.0}


@dataclass(frozen=True, slots=True)
class Entry:
    """One arm's result on one item.

    Attributes:
        score: in the task's unit; `None` where it could not be computed, which is counted.
        output: what the arm said or chose; empty for a loss.
        prompt: what it was asked.
        reference: what would be right.
        tokens: that the arm processed for it.
        seconds: that it took, the batch's time divided by its items.
        slices: by which items are told apart.
        measures: what is reported besides the score.
        log_likelihoods: nats, of each choice.
        choices: their texts.
        answer: index of the right choice.
    """

    arm: str
    suite: str
    task: str
    item: str
    cluster: str
    score: float | None
    output: str
    prompt: str
    reference: str
    tokens: int
    seconds: float
    slices: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    log_likelihoods: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, object]) -> Entry:
        """From a row of JSON or of a table."""
        values: dict[str, object] = {f.name: row[f.name] for f in fields(cls)}
        for name in ("slices", "measures"):
            values[name] = dict(values[name] or {})  # type: ignore[call-overload]
        for name in ("log_likelihoods", "choices"):
            values[name] = tuple(values[name] or ())  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]

    def to_row(self) -> dict[str, Any]:
        """As a row of JSON or of a table."""
        return {name: getattr(self, name) for name in SCHEMA.names}


class Ledger:
    """A ledger on disk, of which one task's rows are read at a time."""

    def __init__(self, path: Path):
        """Open a ledger.

        Raises:
            EvaluationError: if the file is no ledger.
        """
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise EvaluationError(f"{path}: cannot be read as a ledger: {error}") from error
        missing = set(SCHEMA.names) - set(self._file.schema_arrow.names)
        if missing:
            raise EvaluationError(
                f"{path}: no ledger of this version; missing columns: {', '.join(sorted(missing))}"
            )
        self._path = path

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in the order in which they were written."""
        for batch in self._batches(SCHEMA.names, None, BATCH_ROWS[True]):
            yield from _whole(batch)

    def rows_by_arm(self) -> dict[str, int]:
        """How many there are of each arm, by name."""
        counts: Counter[str] = Counter()
        for batch in self._batches(["arm"], None, BATCH_ROWS[False]):
            counts.update(batch.column("arm").to_pylist())
        return dict(sorted(counts.items()))

    def scores(self, suite: str, task: str) -> dict[str, dict[str, float | None]]:
        """Scores of a task by arm and item."""
        found: dict[str, dict[str, float | None]] = defaultdict(dict)
        for batch in self._batches(
            [*_PLACE, "arm", "item", "score"], (suite, task), BATCH_ROWS[False]
        ):
            columns = (batch.column(name).to_pylist() for name in ("arm", "item", "score"))
            for arm, item, score in zip(*columns, strict=True):
                found[arm][item] = score
        return found

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """Whether one of these arms has put out anything on the task."""
        return any(
            pc.any(pc.not_equal(_of_arms(batch, arms).column("output"), "")).as_py()
            for batch in self._batches([*_PLACE, "arm", "output"], (suite, task), BATCH_ROWS[True])
        )

    def arms(
        self, suite: str, task: str, texts: Collection[str] = ()
    ) -> dict[str, dict[str, Entry]]:
        """Entries of a task by arm and item, with what they are judged by.

        Texts are what is large in a ledger: those that are not asked for are left empty, and so are
        tokens and seconds; of choices their number stays.

        Args:
            suite: of the task.
            task: its name.
            texts: columns of texts that are wanted.
        """
        columns = [n for n in SCHEMA.names if n not in _LEFT_OUT or n in texts]
        found: dict[str, dict[str, Entry]] = defaultdict(dict)
        known: dict[Any, Any] = {}
        for batch in self._batches(columns, (suite, task), BATCH_ROWS[bool(texts)]):
            counts = pc.fill_null(pc.list_value_length(batch.column("choices")), 0).to_pylist()
            values = {n: _values(batch, n, known) for n in columns if n != "choices"}
            values["choices"] = [_empty(count) for count in counts]
            for entry in _entries(values, batch.num_rows):
                found[entry.arm][entry.item] = entry
        return found

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """Whole entries of some arms and items of a task, in the order of the file."""
        wanted = pa.array(list(items), pa.string())
        for batch in self._batches(SCHEMA.names, (suite, task), BATCH_ROWS[True]):
            batch = _of_arms(batch, arms)
            yield from _whole(batch.filter(pc.is_in(batch.column("item"), wanted)))

    def _batches(
        self, columns: Collection[str], where: tuple[str, str] | None, rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Rows of the whole ledger, or of one suite and task."""
        try:
            for group in range(self._file.num_row_groups):
                if where is not None and not self._may_hold(group, where):
                    continue
                for batch in self._file.iter_batches(rows, [group], list(columns)):
                    yield batch if where is None else _of_task(batch, where)
        except (OSError, pa.ArrowInvalid) as error:
            raise EvaluationError(f"{self._path}: cannot be read as a ledger: {error}") from error

    def _may_hold(self, group: int, where: tuple[str, str]) -> bool:
        """Whether rows of this suite and task may be among those of a group, by its statistics."""
        metadata = self._file.metadata.row_group(group)
        columns = (metadata.column(n) for n in range(metadata.num_columns))
        known = {c.path_in_schema: c.statistics for c in columns if c.is_stats_set}
        return all(
            known[name].min <= value <= known[name].max
            for name, value in zip(("suite", "task"), where, strict=True)
            if name in known and known[name].has_min_max
        )


def write_ledger(path: Path, entries: Iterable[Entry]) -> None:
    """Write all entries in their order, whole or not at all."""
    with (
        whole_file(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for group in _groups(entries):
            columns = {name: [getattr(e, name) for e in group] for name in SCHEMA.names}
            writer.write_table(pa.Table.from_pydict(columns, schema=SCHEMA))


def read_ledger(path: Path) -> list[Entry]:
    """Read all entries at once.

    Raises:
        EvaluationError: if the file is no ledger.
    """
    return list(Ledger(path))


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    characters = 0
    for entry in entries:
        group.append(entry)
        characters += len(entry.prompt) + len(entry.output) + len(entry.reference)
        characters += sum(map(len, entry.choices))
        if len(group) >= GROUP_ROWS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _of_task(batch: pa.RecordBatch, where: tuple[str, str]) -> pa.RecordBatch:
    suite, task = (pc.equal(batch.column(n), v) for n, v in zip(_PLACE, where, strict=True))
    return batch.filter(pc.and_(suite, task))


def _of_arms(batch: pa.RecordBatch, arms: Collection[str]) -> pa.RecordBatch:
    return batch.filter(pc.is_in(batch.column("arm"), pa.array(list(arms), pa.string())))


def _whole(batch: pa.RecordBatch) -> Iterator[Entry]:
    known: dict[Any, Any] = {}
    return _entries({n: _values(batch, n, known) for n in SCHEMA.names}, batch.num_rows)


def _entries(columns: Mapping[str, Sequence[Any]], rows: int) -> Iterator[Entry]:
    """From the columns that there are, the others left empty."""
    every = [columns.get(name, [_LEFT_OUT.get(name)] * rows) for name in SCHEMA.names]
    # The table's columns are the entry's fields, in the same order.
    return (Entry(*row) for row in zip(*every, strict=True))


def _values(batch: pa.RecordBatch, name: str, known: dict[Any, Any]) -> list[Any]:
    """A column as an entry has it; names that come again and again are kept once."""
    values: list[Any] = batch.column(name).to_pylist()
    if name == "slices":
        # Also the whole mapping: of a million items, few have slices that no other has.
        return [known.setdefault(tuple(pairs or ()), dict(pairs or ())) for pairs in values]
    if name == "measures":
        return [{known.setdefault(n, n): v for n, v in pairs or ()} for pairs in values]
    if name in ("log_likelihoods", "choices"):
        return [tuple(value or ()) for value in values]
    if name in ("arm", "suite", "task", "item", "cluster"):
        return [known.setdefault(value, value) for value in values]
    return values


@cache
def _empty(count: int) -> tuple[str, ...]:
    return ("",) * count
