"""Readers based on `datasets`: CSV and Parquet files, saved data sets, hub ids."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
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


def load_hub(source: str, subset: str | None, split: str, revision: str | None, field: str) -> Any:
    """Download a data set of the hub and load it memory-mapped.

    Raises:
        DataError: if the download fails.
    """
    import datasets

    try:
        return datasets.load_dataset(source, subset, split=split, revision=revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise _download_error(source, field, error) from error


def stream_hub(
    source: str, subset: str | None, split: str, revision: str | None, field: str, rows: int
) -> Any:
    """Stream the first rows of a data set of the hub into memory.

    Raises:
        DataError: if the download fails.
    """
    import datasets

    try:
        stream = datasets.load_dataset(
            source, subset, split=split, revision=revision, streaming=True
        )
        first_rows = list(itertools.islice(stream, rows))
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise _download_error(source, field, error) from error
    return datasets.Dataset.from_list(first_rows, features=stream.features)


def _download_error(source: str, field: str, error: Exception) -> DataError:
    return DataError(
        f"{field}: {source}: cannot be downloaded from the hub (got {first_line(error)}). Fix: "
        "check the id, the split and the network, or name a local file"
    )


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
