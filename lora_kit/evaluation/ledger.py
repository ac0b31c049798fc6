"""The ledger: one row for each (arm, suite, task, item); everything else is computed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lora_kit.errors import EvaluationError
from lora_kit.files import whole_file

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
    missing = {field.name for field in fields(Entry)} - set(table.column_names)
    if missing:
        raise EvaluationError(f"{path}: no ledger; missing columns: {', '.join(sorted(missing))}")
    return [Entry(**row) for row in table.select(SCHEMA.names).to_pylist()]
