"""What the library `datasets` reads: CSV and Parquet files, directories that it saved, hub ids."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.runtime.errors import DataError

# What `datasets` calls the reader of a file, and the options that it takes.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
# Files that a message names.
NAMED = 3
# What a directory holds that `datasets` saved: one data set, or one for each split.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"


def load_files(paths: Sequence[Path], kind: str, shown: Sequence[Path], as_text: bool) -> Any:
    """The rows of files of one kind, memory-mapped.

    Args:
        paths: at least one.
        kind: their ending, one of `READERS`.
        shown: what messages call them.
        as_text: a CSV file has no types: every field is the text that stands there, where else
            `007` would be the number 7 and the answer `None` would be missing.

    Raises:
        DataError: if they cannot be read.
    """
    import datasets

    reader, options = READERS[kind]
    if reader == "csv" and as_text:
        columns = _header(paths[0], options.get("sep", ","), shown[0])
        text = datasets.Features({column: datasets.Value("string") for column in columns})
        options = {**options, "features": text, "keep_default_na": False}
    try:
        return datasets.load_dataset(
            reader, data_files=[str(path) for path in paths], split="train", **options
        )
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        place = ", ".join(map(str, shown[:NAMED]))
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise DataError(f"{place}: cannot be read as {reader}: {reason}") from error


def load_saved(path: Path, split: str, field: str) -> Any:
    """A data set in a directory that `datasets` saved.

    Raises:
        DataError: if it is none, or has no such split.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{field}: {path}: no directory that `datasets` saved: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{field}: {path}: no split `{split}`; it has {', '.join(saved)}")
        return saved[split]
    return saved


def load_hub(source: str, subset: str | None, split: str, revision: str | None, field: str) -> Any:
    """A data set of the hub, fetched whole and memory-mapped.

    Raises:
        DataError: if it cannot be fetched.
    """
    import datasets

    try:
        return datasets.load_dataset(source, subset, split=split, revision=revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise _not_fetched(source, field, error) from error


def stream_hub(
    source: str, subset: str | None, split: str, revision: str | None, field: str, rows: int
) -> Any:
    """The first rows of a data set of the hub, fetched one by one.

    Raises:
        DataError: if they cannot be fetched.
    """
    import datasets

    try:
        stream = datasets.load_dataset(
            source, subset, split=split, revision=revision, streaming=True
        )
        taken = list(itertools.islice(stream, rows))
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise _not_fetched(source, field, error) from error
    return datasets.Dataset.from_list(taken, features=stream.features)


def _not_fetched(source: str, field: str, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{field}: {source}: cannot be fetched as a data set of the hub: {reason}")


def _header(path: Path, separator: str, shown: Path) -> list[str]:
    """The names of a CSV file's columns.

    Raises:
        DataError: if there are none, or one twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            columns = next(csv.reader(stream, delimiter=separator), [])
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{shown}: cannot be read as csv: {error}") from error
    if not columns or not all(columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"{shown}:1: the first line has to name the columns, each once; found "
            f"{', '.join(columns) or '(nothing)'}"
        )
    return columns
