"""The ledger: a table with one row for each (arm, suite, task, item).

Everything else is computed from the ledger. Rows are written and read in groups, so that a ledger
can be larger than memory.
"""

from __future__ import annotations

import json
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
"""Arm whose score is KL(base || adapter), in nats per token."""

_NAMED_TEXTS = pa.map_(pa.string(), pa.string())
_NAMED_NUMBERS = pa.map_(pa.string(), pa.float64())
LEDGER_SCHEMA = pa.schema(
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
        ("look", pa.int64()),
    ]
)
# Key of the plan in the metadata of the file.
PLAN = b"lora_kit.looks"
# Limits of a row group in the file: rows, and characters of texts (approximate).
GROUP_ROWS = 16_384
GROUP_CHARACTERS = 16_000_000
# Rows converted to Python objects at a time, keyed by "texts are read".
BATCH_ROWS = {False: 16_384, True: 1_024}
_TASK_COLUMNS = ("suite", "task")
# Columns that judging reads only on request, with the values that replace them.
_OPTIONAL = {"output": "", "prompt": "", "reference": "", "tokens": 0, "seconds": 0.0}


@dataclass(frozen=True, slots=True)
class Entry:
    """Result of one arm on one item.

    Attributes:
        score: score in the task's unit; `None` if it could not be computed, which is counted.
        output: generated text or chosen answer; empty for a loss.
        prompt: prompt as shown in reports.
        reference: correct answer.
        tokens: number of tokens that the arm processed.
        seconds: time of the batch divided by its items.
        slices: values by which results are broken down.
        measures: secondary metrics by name.
        log_likelihoods: nats, one for each choice.
        choices: texts of the choices.
        answer: index of the correct choice.
        look: number of the look at which the item was asked, from 1.
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
    look: int = 1

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> Entry:
        """Create an entry from a row of JSON or of a table."""
        values: dict[str, object] = {f.name: row[f.name] for f in fields(cls)}
        for name in ("slices", "measures"):
            values[name] = dict(values[name] or {})  # type: ignore[call-overload]
        for name in ("log_likelihoods", "choices"):
            values[name] = tuple(values[name] or ())  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]

    def to_row(self) -> dict[str, Any]:
        """Return the entry as a row of JSON or of a table."""
        return {name: getattr(self, name) for name in LEDGER_SCHEMA.names}


class Ledger:
    """A ledger on disk, read one task at a time."""

    def __init__(self, path: Path):
        """Open a ledger.

        Raises:
            EvaluationError: if the file is not a ledger of this version.
        """
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(path, error) from error
        missing = set(LEDGER_SCHEMA.names) - set(self._file.schema_arrow.names)
        if missing:
            raise EvaluationError(
                f"{path}: not a ledger of this version (got no columns "
                f"{', '.join(sorted(missing))}). Fix: evaluate again"
            )
        self._path = path

    def __iter__(self) -> Iterator[Entry]:
        """Yield all entries in the order of the file."""
        for batch in self._batches(LEDGER_SCHEMA.names, None, BATCH_ROWS[True]):
            yield from _complete_entries(batch)

    @property
    def plan(self) -> Any:
        """Looks at the tasks as JSON values; `None` if the file does not say."""
        written = (self._file.schema_arrow.metadata or {}).get(PLAN)
        try:
            return None if written is None else json.loads(written)
        except ValueError as error:
            raise _unreadable(self._path, error) from error

    def rows_by_arm(self) -> dict[str, int]:
        """Return the number of rows of each arm, sorted by name."""
        counts: Counter[str] = Counter()
        for batch in self._batches(["arm"], None, BATCH_ROWS[False]):
            counts.update(batch.column("arm").to_pylist())
        return dict(sorted(counts.items()))

    def scores(self, suite: str, task: str) -> dict[str, dict[str, float | None]]:
        """Return the scores of a task by arm and item."""
        columns = ("arm", "item", "score")
        scores: dict[str, dict[str, float | None]] = defaultdict(dict)
        for batch in self._batches([*_TASK_COLUMNS, *columns], (suite, task), BATCH_ROWS[False]):
            values = (batch.column(name).to_pylist() for name in columns)
            for arm, item, score in zip(*values, strict=True):
                scores[arm][item] = score
        return scores

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """Return true if one of these arms has a non-empty output on the task."""
        columns = [*_TASK_COLUMNS, "arm", "output"]
        return any(
            pc.any(pc.not_equal(_of_arms(batch, arms).column("output"), "")).as_py()
            for batch in self._batches(columns, (suite, task), BATCH_ROWS[True])
        )

    def arms(
        self, suite: str, task: str, texts: Collection[str] = ()
    ) -> dict[str, dict[str, Entry]]:
        """Return the entries of a task by arm and item, with the values that judging needs.

        Texts make up most of a ledger: texts not requested are left empty, as are tokens and
        seconds. Choices that are not requested become empty strings, so that their number is
        preserved.

        Args:
            suite: name of the suite.
            task: name of the task.
            texts: columns of texts to read.
        """
        columns = [n for n in LEDGER_SCHEMA.names if n not in _OPTIONAL or n in texts]
        by_arm: dict[str, dict[str, Entry]] = defaultdict(dict)
        known: dict[Any, Any] = {}
        for batch in self._batches(columns, (suite, task), BATCH_ROWS[bool(texts)]):
            counts = pc.fill_null(pc.list_value_length(batch.column("choices")), 0).to_pylist()
            values = {n: _values(batch, n, known) for n in columns if n != "choices"}
            if "choices" in texts:
                choices = _values(batch, "choices", known)
                values["choices"] = [known.setdefault(one, one) for one in choices]
            else:
                values["choices"] = [_empty_texts(count) for count in counts]
            for entry in _entries(values, batch.num_rows):
                by_arm[entry.arm][entry.item] = entry
        return by_arm

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """Yield complete entries of the given arms and items of a task, in file order."""
        requested = pa.array(list(items), pa.string())
        for batch in self._batches(LEDGER_SCHEMA.names, (suite, task), BATCH_ROWS[True]):
            batch = _of_arms(batch, arms)
            yield from _complete_entries(batch.filter(pc.is_in(batch.column("item"), requested)))

    def _batches(
        self, columns: Collection[str], where: tuple[str, str] | None, rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows of the complete ledger, or of one suite and task."""
        try:
            for group in range(self._file.num_row_groups):
                if where is not None and not self._may_hold(group, where):
                    continue
                for batch in self._file.iter_batches(rows, [group], list(columns)):
                    if where is not None:
                        suite, task = (
                            pc.equal(batch.column(name), value)
                            for name, value in zip(_TASK_COLUMNS, where, strict=True)
                        )
                        batch = batch.filter(pc.and_(suite, task))
                    yield batch
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(self._path, error) from error

    def _may_hold(self, group: int, where: tuple[str, str]) -> bool:
        """Return false if the statistics of a row group exclude this suite and task."""
        metadata = self._file.metadata.row_group(group)
        columns = (metadata.column(n) for n in range(metadata.num_columns))
        known = {c.path_in_schema: c.statistics for c in columns if c.is_stats_set}
        return all(
            known[name].min <= value <= known[name].max
            for name, value in zip(_TASK_COLUMNS, where, strict=True)
            if name in known and known[name].has_min_max
        )


def write_ledger(
    path: Path, entries: Iterable[Entry], plan: Mapping[str, Any] | None = None
) -> None:
    """Write all entries in order; if writing fails, no file is left.

    Args:
        path: path of the file.
        entries: entries in the order of the file.
        plan: looks at the tasks as JSON values, which the file's metadata hold.
    """
    metadata = {} if plan is None else {PLAN: json.dumps(plan).encode()}
    schema = LEDGER_SCHEMA.with_metadata(metadata)
    with (
        whole_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for group in _groups(entries):
            columns = {name: [getattr(e, name) for e in group] for name in LEDGER_SCHEMA.names}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))


def read_ledger(path: Path) -> list[Entry]:
    """Read all entries at once.

    Raises:
        EvaluationError: if the file is not a ledger of this version.
    """
    return list(Ledger(path))


def _unreadable(path: Path, error: Exception) -> EvaluationError:
    return EvaluationError(f"{path}: cannot be read as a ledger ({error}). Fix: evaluate again")


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


def _of_arms(batch: pa.RecordBatch, arms: Collection[str]) -> pa.RecordBatch:
    return batch.filter(pc.is_in(batch.column("arm"), pa.array(list(arms), pa.string())))


def _complete_entries(batch: pa.RecordBatch) -> Iterator[Entry]:
    known: dict[Any, Any] = {}
    return _entries({n: _values(batch, n, known) for n in LEDGER_SCHEMA.names}, batch.num_rows)


def _entries(columns: Mapping[str, Sequence[Any]], rows: int) -> Iterator[Entry]:
    """Yield entries from columns; columns not given have their default values."""
    every = [columns.get(name, [_OPTIONAL.get(name)] * rows) for name in LEDGER_SCHEMA.names]
    # The columns of the schema are the fields of an entry, in the same order.
    return (Entry(*row) for row in zip(*every, strict=True))


def _values(batch: pa.RecordBatch, name: str, known: dict[Any, Any]) -> list[Any]:
    """Return a column as values of an entry; `known` interns repeated names to save memory."""
    values: list[Any] = batch.column(name).to_pylist()
    if name == "slices":
        # Complete mappings are interned too: few of a million items have unique slices.
        return [known.setdefault(tuple(pairs or ()), dict(pairs or ())) for pairs in values]
    if name == "measures":
        return [{known.setdefault(n, n): v for n, v in pairs or ()} for pairs in values]
    if name in ("log_likelihoods", "choices"):
        return [tuple(value or ()) for value in values]
    if name in ("arm", "suite", "task", "item", "cluster"):
        return [known.setdefault(value, value) for value in values]
    return values


@cache
def _empty_texts(count: int) -> tuple[str, ...]:
    return ("",) * count
