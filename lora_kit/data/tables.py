"""Tables of any kind as mappings: files, directories of `datasets`, hub ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_kit.data.lines import json_lines
from lora_kit.errors import DataError

LINES = (".jsonl", ".ndjson")
# What `datasets` calls the readers of other files, and the options that they take.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
SUFFIXES = (*LINES, ".json", *READERS)


def read_table(
    source: str, field: str, subset: str | None, split: str, revision: str | None
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each row and where it stands, such as `quiz.jsonl:12`.

    Args:
        source: a file, a directory that `datasets` saved, or a hub id.
        field: of the recipe or suite, for messages.
        subset: of a hub id, its configuration.
        split: of a source that has splits.
        revision: of a hub id.

    Raises:
        DataError: if there is no such source or split, or a row is no mapping, with its place.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        rows = _numbered(_saved(path, split, field), source)
    elif path.suffix in SUFFIXES:
        if not path.is_file():
            raise DataError(f"{field}: {path}: no such file")
        rows = _file(path)
    elif is_hub_id(source):
        rows = _numbered(_hub(source, subset, split, revision, field), source)
    else:
        raise DataError(
            f"{field}: {source}: no built-in source, no file ({', '.join(SUFFIXES)}), no directory "
            "that `datasets` saved, and no hub id (owner/name)"
        )
    for value, origin in rows:
        if not isinstance(value, Mapping):
            raise DataError(f"{origin}: an object is wanted, found {type(value).__name__}")
        yield value, origin


def is_hub_id(source: str) -> bool:
    """Whether a source is `owner/name`, and neither here nor a file by its ending."""
    path = Path(source).expanduser()
    return source.count("/") == 1 and path.suffix not in SUFFIXES and not path.exists()


def _file(path: Path) -> Iterator[tuple[Any, str]]:
    if path.suffix in LINES:
        return json_lines(path)
    if path.suffix == ".json":
        return _numbered(_json_list(path), str(path))
    import datasets

    reader, options = READERS[path.suffix]
    try:
        table = datasets.load_dataset(reader, data_files=str(path), split="train", **options)
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as {reader}: {error}") from error
    return _numbered(table, str(path))


def _json_list(path: Path) -> list[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, list):
        raise DataError(f"{path}: a list of objects is wanted, found {type(value).__name__}")
    return value


def _saved(path: Path, split: str, field: str) -> Any:
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


def _hub(source: str, subset: str | None, split: str, revision: str | None, field: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source, subset, split=split, revision=revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{field}: {source}: cannot be fetched as a data set of the hub: {reason}"
        ) from error


def _numbered(rows: Any, source: str) -> Iterator[tuple[Any, str]]:
    return ((value, f"{source}[{number}]") for number, value in enumerate(rows))
