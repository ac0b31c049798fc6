"""Where rows come from: built-in sources by name, tables by path or hub id."""

from __future__ import annotations

import difflib
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.data.builtin.areas import area_rows
from lora_kit.data.builtin.docstrings import docstring_pairs, docstring_rows
from lora_kit.data.builtin.reference import reference_rows
from lora_kit.data.builtin.sums import sum_rows
from lora_kit.data.files.datafiles import ENDINGS, kind_of
from lora_kit.data.files.tables import (
    ArrowTable,
    Table,
    Wanted,
    has_splits,
    is_hub_id,
    open_table,
)
from lora_kit.data.formats import check_columns, parse_row
from lora_kit.data.row_sets import Rows, Source
from lora_kit.data.rows import Row, split_of
from lora_kit.recipe.data import SourceSpec
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.hashes import json_sha256

# Rows, and the shares of their clusters that are held out for validation and test.
BUILT_IN: dict[str, tuple[Callable[[], Sequence[Row]], float, float]] = {
    "stdlib-docstrings": (docstring_rows, 0.1, 0.15),
    "stdlib-docstring-pairs": (docstring_pairs, 0.1, 0.15),
    "stdlib-areas": (area_rows, 0.1, 0.3),
    "python-reference": (reference_rows, 0.1, 0.5),
    "sums": (sum_rows, 0.1, 0.25),
}
# The LICENSE of CPython is the stack that SPDX calls Python-2.0.1: the agreement of the PSF with
# those of BeOpen, CNRI (of Python 1.6.1) and CWI, which have to be kept. PSF-2.0 is the first of
# them alone; Python-2.0 is the stack with an older one of CNRI, not used since 2.0.1.
OF_PYTHON = ("Python-2.0.1", "Python's LICENSE")
# The licence of each, and what says so.
BUILT_IN_LICENSES = {
    "stdlib-docstrings": OF_PYTHON,
    "stdlib-docstring-pairs": OF_PYTHON,
    "python-reference": OF_PYTHON,
    "sums": ("Apache-2.0", "lora_kit's LICENSE"),
}
SPLITS = ("train", "validation", "test", "all")


def read_source(
    spec: SourceSpec, seed: int, field: str, whole: bool = False, pairs: bool = False
) -> Rows:
    """The rows of one source, in the source's order.

    Args:
        spec: what to read; its limit picks at random by `seed`, but where rows are streamed.
        seed: the recipe's.
        field: the recipe's field, for messages.
        whole: whether every turn of a conversation is learned, so that any may be the last.
        pairs: whether pairs of preference are wanted, and nothing else.

    Raises:
        DataError: if the source is unknown or cannot be read as asked. A row that is wrong is
            found when it is read.
    """
    is_built_in = spec.source in BUILT_IN
    if is_built_in:
        source = _built_in(spec, field, pairs)
    else:
        source = _table_source(spec, field, whole, pairs)
    numbers = np.arange(source.size, dtype=np.int64)
    if spec.limit is not None and spec.limit < source.size:
        # By the field, not by the source: a file's path must not decide which rows are taken.
        chosen = array("q", random.Random(f"{seed}/{field}").sample(range(source.size), spec.limit))
        numbers = np.sort(np.frombuffer(chosen, dtype=np.int64))
    return Rows((source,), np.zeros(len(numbers), np.int32), numbers)


def _built_in(spec: SourceSpec, field: str, pairs: bool) -> Source:
    unused = ("subset", "revision", "streaming", "columns", "license")
    _refuse_unused(spec, field, unused, "built in")
    read, validation, test = BUILT_IN[spec.source]
    is_texts = read()[0].text is not None
    if spec.format == "text" and not is_texts:
        raise DataError(
            f"{field}: {spec.source} holds conversations, of which training.objective: text learns "
            f"nothing; use objective: sft, or texts ({', '.join(_built_in_texts())}, or a file "
            "with a column `text`)"
        )
    if spec.format not in ("auto", "text"):
        raise DataError(
            f"{_beside(field, 'format')}: {spec.source} is built in and has its own; leave it out"
        )
    if spec.split not in SPLITS:
        raise DataError(
            f"{_beside(field, 'split')}: {spec.source} has no split `{spec.split}`; it has "
            f"{', '.join(SPLITS)}"
        )
    _require_pairs(spec, field, pairs, read())
    rows = [row for row in read() if spec.split in ("all", split_of(row.cluster, validation, test))]
    return Rows.of(spec.source, rows).sources[0]


def _built_in_texts() -> list[str]:
    return [name for name, (read, _, _) in BUILT_IN.items() if read()[0].text is not None]


def _require_pairs(spec: SourceSpec, field: str, pairs: bool, rows: Sequence[Row]) -> None:
    if bool(rows[0].rejected) != pairs:
        wanted, found = ("pairs of preference", "none") if pairs else ("rows", "pairs")
        raise DataError(
            f"{field}: {spec.source} has {found}, and {wanted} are wanted: the objectives dpo, "
            "orpo and reward learn from pairs of preference, and nothing else does"
        )


def _table_source(spec: SourceSpec, field: str, whole: bool, pairs: bool) -> Source:
    table = _opened(spec, field)
    if not len(table):
        raise DataError(f"{field}: {spec.source}: there are no rows in it")
    place = _beside(field, "columns")
    check_columns(spec.columns, spec.format, place)
    names = table.names if isinstance(table, ArrowTable) else {}

    def take(numbers: Sequence[int]) -> list[Row]:
        values = table.take(numbers)
        if isinstance(table, ArrowTable):
            # Arrow gives every object the fields of all, empty where it had none.
            values = [{key: _without_nulls(v) for key, v in value.items()} for value in values]
        return [
            parse_row(
                value, table.origin(number), spec.format, spec.columns, names, whole, pairs, place
            )
            for number, value in zip(numbers, values, strict=True)
        ]

    def digest() -> str:
        read = [table.digest(), table.origin(0), spec.format, sorted(spec.columns.items())]
        return json_sha256(read)

    name = f"{spec.source}/{spec.subset}" if spec.subset else spec.source
    return Source(name, len(table), take, digest)


def _opened(spec: SourceSpec, field: str) -> Table:
    path = Path(spec.source).expanduser()
    if not path.is_dir() and not kind_of(path) and not is_hub_id(spec.source):
        near = difflib.get_close_matches(spec.source, BUILT_IN, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise DataError(
            f"{field}: {spec.source}: neither a built-in source ({', '.join(BUILT_IN)}) nor a file "
            f"({ENDINGS}), a folder or a hub id (owner/name).{hint}"
        )
    if not is_hub_id(spec.source):
        _refuse_unused(spec, field, ("subset", "revision", "streaming"), "no hub id")
    if not has_splits(spec.source) and spec.split not in ("train", "all"):
        raise DataError(
            f"{_beside(field, 'split')}: {spec.source} is a file or a folder and has no split "
            f"`{spec.split}`; leave it out"
        )
    if spec.streaming and spec.limit is None:
        raise DataError(
            f"{_beside(field, 'limit')}: missing; of {spec.source}, streaming fetches the first "
            "`limit` rows"
        )
    return open_table(
        Wanted(
            spec.source,
            field,
            spec.split,
            spec.subset,
            spec.revision,
            spec.limit if spec.streaming else None,
            as_text=True,
        )
    )


def _refuse_unused(spec: SourceSpec, field: str, options: Sequence[str], reason: str) -> None:
    """An option that would not be used is no option."""
    for name in options:
        if getattr(spec, name):
            raise DataError(f"{_beside(field, name)}: {spec.source} is {reason}; leave it out")


def _beside(field: str, name: str) -> str:
    """Another field of the source that `field` names: `data.train.0.source`, its `split`."""
    return f"{field.removesuffix('.source')}.{name}"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value
