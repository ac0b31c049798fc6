"""Row sources: built-in ones by name, tables by path or hub id."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lora_kit.data.builtin.areas import area_rows
from lora_kit.data.builtin.docstrings import docstring_pairs, docstring_rows
from lora_kit.data.builtin.functions import complexity_rows, statement_rows
from lora_kit.data.builtin.passages import docstring_code_rows
from lora_kit.data.builtin.reference import reference_rows
from lora_kit.data.builtin.roles import role_rows
from lora_kit.data.builtin.sums import sum_rows
from lora_kit.data.builtin.texts import library_texts
from lora_kit.data.files.readers import TableRequest
from lora_kit.data.files.tables import Table, class_names, has_splits, is_hub_id, open_table
from lora_kit.data.formats import FORMATS, check_columns, detect_format, parse_row
from lora_kit.data.row_sets import Rows, RowSource
from lora_kit.data.rows import Row, Split, assign_split
from lora_kit.recipe.data import RowFormat, SourceSpec
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.hashes import json_sha256


@dataclass(frozen=True)
class BuiltIn:
    """Built-in source.

    Attributes:
        read: function that returns all rows, which may take seconds.
        format: format that the rows would have in a file.
        license: SPDX id of the license, and the evidence for it.
        test: fraction of the clusters held out for test.
        validation: fraction of the clusters held out for validation.
    """

    read: Callable[[], Sequence[Row]]
    format: RowFormat
    license: tuple[str, str]
    test: float
    validation: float = 0.1


# The LICENSE of CPython is the stack that SPDX calls Python-2.0.1: the agreement of the PSF plus
# those of BeOpen, CNRI (of Python 1.6.1) and CWI, all of which apply. PSF-2.0 is only the first of
# them; Python-2.0 is the stack with an older agreement of CNRI, not used since 2.0.1.
PYTHON_LICENSE = ("Python-2.0.1", "Python's LICENSE")
BUILT_IN = {
    "stdlib-docstrings": BuiltIn(docstring_rows, "messages", PYTHON_LICENSE, 0.15),
    "stdlib-docstring-pairs": BuiltIn(docstring_pairs, "preference", PYTHON_LICENSE, 0.15),
    "stdlib-areas": BuiltIn(area_rows, "text-label", PYTHON_LICENSE, 0.3),
    "stdlib-complexity": BuiltIn(complexity_rows, "text-score", PYTHON_LICENSE, 0.3),
    "stdlib-statements": BuiltIn(statement_rows, "text-labels", PYTHON_LICENSE, 0.3),
    "stdlib-roles": BuiltIn(role_rows, "tokens-tags", PYTHON_LICENSE, 0.3),
    "stdlib-docstring-code": BuiltIn(docstring_code_rows, "pair", PYTHON_LICENSE, 0.2),
    "stdlib-texts": BuiltIn(library_texts, "text", PYTHON_LICENSE, 0.3),
    "python-reference": BuiltIn(reference_rows, "text", PYTHON_LICENSE, 0.5),
    "sums": BuiltIn(sum_rows, "messages", ("Apache-2.0", "lora_kit's LICENSE"), 0.25),
}
SPLITS: tuple[str, ...] = get_args(Split)


def open_source(
    spec: SourceSpec,
    seed: int,
    field: str,
    train_on_all: bool = False,
    needed: Sequence[RowFormat] = (),
) -> Rows:
    """Open one source and return its rows, in the source's order.

    Args:
        spec: the source; its `limit` samples rows with `seed`, or takes the first rows of a
            streamed source.
        seed: the recipe's seed.
        field: recipe field of the source, for error messages.
        train_on_all: if true, every turn of a conversation is supervised, so that the last turn
            may have any role.
        needed: formats that the objective needs; all but `preference` if empty.

    Raises:
        DataError: if the source is unknown or cannot be read with these options. A malformed row
            is reported when it is read.
    """
    if spec.source in BUILT_IN:
        source = _built_in(spec, field, needed)
    else:
        source = _table_source(spec, field, train_on_all, needed)
    numbers = np.arange(source.size, dtype=np.int64)
    if spec.limit is not None and spec.limit < source.size:
        # Seeded with the field instead of the source: a file's path must not change the sample.
        chosen = array("q", random.Random(f"{seed}/{field}").sample(range(source.size), spec.limit))
        numbers = np.sort(np.frombuffer(chosen, dtype=np.int64))
    return Rows((source,), np.zeros(len(numbers), np.int32), numbers)


def _built_in(spec: SourceSpec, field: str, needed: Sequence[RowFormat]) -> RowSource:
    unused = ("subset", "revision", "streaming", "columns", "license")
    _refuse_unused(spec, field, unused, "built in")
    built_in = BUILT_IN[spec.source]
    if spec.format == "text" and built_in.format != "text":
        texts = [name for name, one in BUILT_IN.items() if one.format == "text"]
        raise DataError(
            f"{field}: training.objective: text needs texts (got the conversations of "
            f"{spec.source}). Fix: set objective: sft, or name texts ({', '.join(texts)}, or a "
            "file with a column `text`)"
        )
    if spec.format not in ("auto", "text"):
        raise DataError(
            f"{_sibling(field, 'format')}: {spec.source} is built in and has a fixed format (got "
            f"{spec.format}). Fix: remove it"
        )
    if spec.split not in SPLITS:
        raise DataError(
            f"{_sibling(field, 'split')}: {spec.source} has no split `{spec.split}`. Fix: use one "
            f"of {', '.join(SPLITS)}"
        )
    has_pairs = built_in.format == "preference"
    if has_pairs != ("preference" in needed):
        raise DataError(
            f"{field}: the objectives dpo, orpo and reward need preference pairs, all others "
            f"support none (got {spec.source}, with{'' if has_pairs else 'out'} pairs). Fix: "
            "change the source or training.objective"
        )
    rows = [
        row
        for row in built_in.read()
        if spec.split in ("all", assign_split(row.cluster, built_in.validation, built_in.test))
    ]
    return Rows.of(spec.source, rows).sources[0]


def _table_source(
    spec: SourceSpec, field: str, train_on_all: bool, needed: Sequence[RowFormat]
) -> RowSource:
    table = _open_spec(spec, field)
    if not len(table):
        raise DataError(f"{field}: {spec.source} has no rows. Fix: add rows, or remove the source")
    place = _sibling(field, "columns")
    check_columns(spec.columns, spec.format, place)
    names = class_names(table)

    def take(numbers: Sequence[int]) -> list[Row]:
        values = table.take(numbers)
        return [
            parse_row(
                drop_nulls(value, spec.columns, spec.format, needed),
                table.origin(number),
                spec.format,
                spec.columns,
                names,
                train_on_all,
                needed,
                place,
            )
            for number, value in zip(numbers, values, strict=True)
        ]

    def digest() -> str:
        parts = [table.digest(), table.origin(0), spec.format, sorted(spec.columns.items())]
        return json_sha256(parts)

    name = f"{spec.source}/{spec.subset}" if spec.subset else spec.source
    return RowSource(name, len(table), take, digest)


def drop_nulls(
    value: Any,
    columns: Mapping[str, str] | None = None,
    form: RowFormat = "auto",
    needed: Sequence[RowFormat] = (),
) -> Any:
    """Return a raw row without its null fields, which tables have where a row has no such field.

    A row that has no format without them is returned as it is, for an error that shows the null.

    Args:
        value: raw row from its source.
        columns: column name by field of the format, if the names differ.
        form: format of the row; `auto` detects it by the columns.
        needed: formats that the objective needs.
    """
    if not isinstance(value, Mapping) or None not in value.values():
        return value
    present = {key: inner for key, inner in value.items() if inner is not None}
    columns = columns or {}
    if not set(columns.values()) <= set(present):
        return value
    fields = {*present, *columns}
    if form == "auto":
        has_format = detect_format(dict.fromkeys(fields), columns, needed) is not None
    else:
        has_format = set(FORMATS[form].fields) <= fields
    return present if has_format else value


def _open_spec(spec: SourceSpec, field: str) -> Table:
    if not is_hub_id(spec.source):
        _refuse_unused(spec, field, ("subset", "revision", "streaming"), "no hub id")
    is_local = Path(spec.source).expanduser().exists()
    if is_local and not has_splits(spec.source) and spec.split not in ("train", "all"):
        raise DataError(
            f"{_sibling(field, 'split')}: {spec.source} is a file or a folder and has no split "
            f"`{spec.split}`. Fix: remove it"
        )
    if spec.streaming and spec.limit is None:
        raise DataError(
            f"{_sibling(field, 'limit')}: missing, but {spec.source} is streamed. Fix: set the "
            "number of rows to fetch"
        )
    return open_table(
        TableRequest(
            spec.source,
            field,
            spec.split,
            spec.subset,
            spec.revision,
            spec.limit if spec.streaming else None,
            built_in=tuple(BUILT_IN),
        )
    )


def _refuse_unused(spec: SourceSpec, field: str, options: Sequence[str], reason: str) -> None:
    """Refuse options that would have no effect on this source."""
    for name in options:
        if getattr(spec, name):
            raise DataError(
                f"{_sibling(field, name)}: {spec.source} is {reason}, so `{name}` would have no "
                f"effect (got {getattr(spec, name)}). Fix: remove it"
            )


def _sibling(field: str, name: str) -> str:
    """Return another field of the same source: `data.train.0.source` -> `data.train.0.split`."""
    return f"{field.removesuffix('.source')}.{name}"
