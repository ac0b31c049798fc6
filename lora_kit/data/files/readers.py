"""Readers based on `datasets`: CSV and Parquet files, saved data sets, hub ids."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.runtime.errors import DataError, first_line

# Name of the reader in `datasets` and its options, by file ending.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
# Files named in an error message.
MAX_NAMED = 3
# File that marks a directory saved by `datasets`: one data set, or one per split.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class TableRequest:
    """Source of a table, with reading options.

    Attributes:
        source: a file, a folder, or a hub id.
        field: field of the recipe or suite, for error messages.
        split: split, for sources with splits.
        subset: configuration of a hub id.
        revision: revision of a hub id.
        streamed_rows: number of rows to stream from the hub; `None` to download all rows.
        as_text: if true, read every field of a CSV file as text.
        built_in: names of built-in sources, for the error about an unknown source.
    """

    source: str
    field: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    streamed_rows: int | None = None
    as_text: bool = False
    built_in: tuple[str, ...] = ()


def load_files(paths: Sequence[Path], kind: str, originals: Sequence[Path], as_text: bool) -> Any:
    """Load files of one kind as one memory-mapped data set.

    Args:
        paths: files to read, at least one.
        kind: ending of the files, one of `READERS`.
        originals: paths in error messages.
        as_text: if true, read every CSV field as text; type inference would turn `007` into 7 and
            the answer `None` into a missing value.

    Raises:
        DataError: if the files cannot be read.
    """
    import datasets

    reader, options = READERS[kind]
    if reader == "csv" and as_text:
        columns = _header(paths[0], options.get("sep", ","), originals[0])
        text = datasets.Features({column: datasets.Value("string") for column in columns})
        options = {**options, "features": text, "keep_default_na": False}
    try:
        return datasets.load_dataset(
            reader, data_files=[str(path) for path in paths], split="train", **options
        )
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        files = ", ".join(map(str, originals[:MAX_NAMED]))
        raise DataError(
            f"{files}: cannot be read as {reader} (got {first_line(error.__cause__ or error)}). "
            "Fix: correct the file, or rename it if it has another format"
        ) from error


def load_saved(path: Path, split: str, field: str) -> Any:
    """Load a data set from a directory saved by `datasets`.

    Raises:
        DataError: if the directory cannot be loaded, or has no such split.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{field}: {path}: cannot be loaded as a data set saved by `datasets` (got {error}). "
            "Fix: save it again"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(
                f"{field}: {path}: no split `{split}`. Fix: use one of {', '.join(saved)}"
            )
        return saved[split]
    return saved


def load_hub(request: TableRequest) -> Any:
    """Download a data set of the hub memory-mapped, or stream its first rows into memory.

    Raises:
        DataError: if the download fails.
    """
    import datasets

    rows = request.streamed_rows
    try:
        dataset = datasets.load_dataset(
            request.source,
            request.subset,
            split=request.split,
            revision=request.revision,
            streaming=rows is not None,
        )
        if rows is None:
            return dataset
        first_rows = list(itertools.islice(dataset, rows))
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise DataError(
            f"{request.field}: {request.source}: cannot be downloaded from the hub (got "
            f"{first_line(error)}). Fix: check the id, the split and the network, or name a local "
            "file"
        ) from error
    return datasets.Dataset.from_list(first_rows, features=dataset.features)


def _header(path: Path, separator: str, original: Path) -> list[str]:
    """Return the column names of a CSV file.

    Raises:
        DataError: if the file cannot be read, has no header, or names a column twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            columns = next(csv.reader(stream, delimiter=separator), [])
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{original}: cannot be read as csv (got {error}). Fix: correct the file, or rename it "
            "if it has another format"
        ) from error
    if not columns or not all(columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"{original}:1: the first line must name the columns, each once (got "
            f"{', '.join(columns) or 'nothing'}). Fix: add or correct the header"
        )
    return columns
