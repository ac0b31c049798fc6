"""Readers based on `datasets`: Parquet files, saved data sets, hub ids."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import DataError, first_line
from lora_kit.runtime.hash_cache import cached_sha256
from lora_kit.runtime.hashes import json_sha256

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
        built_in: names of built-in sources, for the error about an unknown source.
    """

    source: str
    field: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    streamed_rows: int | None = None
    built_in: tuple[str, ...] = ()


def load_parquet(path: Path, original: Path) -> Any:
    """Load a file as a memory-mapped data set, found in the cache by its content.

    `datasets` by itself looks for a file's path and time, and would give the old rows of a file
    that was written twice within a second.

    Args:
        path: file to read.
        original: path in error messages.

    Raises:
        DataError: if the file cannot be read.
    """
    import datasets

    try:
        content = json_sha256(cached_sha256([path]))
        return datasets.load_dataset(
            "parquet",
            data_files=[str(path)],
            split="train",
            cache_dir=str(cache_directory() / "tables" / content),
        )
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise DataError(
            f"{original}: cannot be read as parquet (got {first_line(error.__cause__ or error)}). "
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
        saved = saved[split]
    # The format that it was saved with, such as that of pandas, may hide columns.
    return saved.with_format(None)


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
