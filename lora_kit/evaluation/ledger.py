"""The ledger: one row for each (arm, suite, task, item); everything else is computed from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lora_kit.errors import EvaluationError
from lora_kit.files import whole_file

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


@dataclass(frozen=True)
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


def write_ledger(path: Path, entries: Sequence[Entry]) -> None:
    """Write all entries, whole or not at all."""
    table = pa.Table.from_pylist([asdict(entry) for entry in entries], schema=SCHEMA)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_ledger(path: Path) -> list[Entry]:
    """Read all entries.

    Raises:
        EvaluationError: if the file is no ledger.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise EvaluationError(f"{path}: cannot be read as a ledger: {error}") from error
    missing = set(SCHEMA.names) - set(table.column_names)
    if missing:
        raise EvaluationError(
            f"{path}: no ledger of this version; missing columns: {', '.join(sorted(missing))}"
        )
    rows = table.select(SCHEMA.names).to_pylist(maps_as_pydicts="strict")
    return [Entry.of(row) for row in rows]
