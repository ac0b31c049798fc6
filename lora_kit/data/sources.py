"""Where rows come from: built-in sources by name, JSON-lines files by path."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_kit.data.docstrings import docstring_rows
from lora_kit.data.lines import json_lines
from lora_kit.data.reference import reference_rows
from lora_kit.data.rows import Row, Split, parse_row, split_of
from lora_kit.errors import DataError
from lora_kit.recipe import SourceSpec

# Rows, and the shares of their clusters that are held out for validation and test.
BUILT_IN: dict[str, tuple[Callable[[], Sequence[Row]], float, float]] = {
    "stdlib-docstrings": (docstring_rows, 0.1, 0.15),
    "python-reference": (reference_rows, 0.1, 0.5),
}


def read_source(spec: SourceSpec, seed: int, field: str) -> list[Row]:
    """The rows of one source, in the source's order.

    Args:
        spec: what to read; its limit picks at random by `seed`.
        seed: the recipe's.
        field: the recipe's field, for messages.

    Raises:
        DataError: if the source is unknown, or a row of a file is wrong, with its line.
    """
    if spec.source in BUILT_IN:
        read, validation, test = BUILT_IN[spec.source]
        rows = [
            row for row in read() if spec.split in ("all", split_of(row.cluster, validation, test))
        ]
    else:
        rows = _read_file(spec.source, spec.split, field)
    if spec.limit is not None and spec.limit < len(rows):
        # By the field, not by the source: a file's path must not decide which rows are taken.
        chosen = random.Random(f"{seed}/{field}").sample(range(len(rows)), spec.limit)
        rows = [rows[index] for index in sorted(chosen)]
    return rows


def _read_file(source: str, split: Split, field: str) -> list[Row]:
    path = Path(source).expanduser()
    if path.suffix not in (".jsonl", ".ndjson"):
        near = difflib.get_close_matches(source, BUILT_IN, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise DataError(
            f"{field}: {source}: neither a built-in source ({', '.join(BUILT_IN)}) nor a .jsonl "
            f"file.{hint}"
        )
    if split not in ("train", "all"):
        raise DataError(f"{field}: {source} is a file and has no split `{split}`; leave split out")
    return read_jsonl(path, field)


def read_jsonl(path: Path, field: str) -> list[Row]:
    """Rows of a JSON-lines file.

    Raises:
        DataError: if it cannot be read, is empty, or a line is wrong, with the line's number.
    """
    if not path.is_file():
        raise DataError(f"{field}: {path}: no such file")
    rows = [parse_row(value, origin) for value, origin in json_lines(path)]
    if not rows:
        raise DataError(f"{field}: {path}: the file has no rows")
    return rows
