"""Files of rows: supported endings, decompression, and the contents of a folder.

A folder is read recursively, as by `datasets.load_dataset`, but no file is skipped silently: a file
that is neither readable as rows nor known to hold none is an error.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from lora_kit.data.files.delimited import DIALECTS
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import whole_file
from lora_kit.runtime.hash_cache import cached_sha256
from lora_kit.runtime.locks import one_process_at_a_time

LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
SUFFIXES = (*LINES, ".json", *DIALECTS, PARQUET)
# Arrow's name of the compression, by ending.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
ENDINGS = f"{', '.join(SUFFIXES)}, optionally followed by {', '.join(COMPRESSIONS)}"
# Files without rows that are skipped: documentation, and metadata written by `datasets`.
ABOUT = re.compile(
    r"(readme|licen[sc]e|copying|notice|citation)\b(.*\.(md|markdown|txt|rst|html?|pdf|bib|cff)|[^.]*)",
    re.IGNORECASE,
)
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# Words in a path that name a split, as in `datasets`.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Files named in an error message.
MAX_NAMED = 5


def require_text_path(path: Path, field: str) -> None:
    """Refuse a path that is not UTF-8, which no record or report could hold.

    Raises:
        DataError: if the path has other bytes; the message shows them escaped.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{field}: a file name must be UTF-8 (got {str(path)!a}). Fix: rename the file or "
            "folder"
        ) from error


def file_kind(path: Path) -> str:
    """Return the file ending that selects the reader, without compression; empty if unsupported."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    ending = name.suffix.lower()
    return ending if ending in SUFFIXES else ""


def decompressed_file(path: Path) -> Path:
    """Return the path to read: the file itself, or a copy decompressed into the cache.

    The copy is found by its content; rows need random access.

    Raises:
        DataError: if the file cannot be decompressed.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path
    try:
        target = cache_directory() / "unpacked" / f"{cached_sha256([path])[0]}{file_kind(path)}"
        with one_process_at_a_time(target):
            if not target.is_file():
                with (
                    whole_file(target) as temporary,
                    pa.input_stream(str(path), compression=compression) as packed,
                    temporary.open("wb") as stream,
                ):
                    shutil.copyfileobj(packed, stream)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be decompressed as {compression} ({error}). Fix: compress the file "
            "again, or rename it"
        ) from error
    return target


def list_data_files(folder: Path, field: str) -> list[Path]:
    """List the files of rows in a folder and its subfolders, sorted by path.

    Args:
        folder: an existing folder.
        field: field of the recipe or suite, for error messages.

    Raises:
        DataError: if the folder has no files of rows, unsupported files, or files of several
            splits, or a name that is not UTF-8.
    """
    files, unsupported = [], []
    for path in _walk(folder):
        require_text_path(path, field)
        is_read = path.is_file() and file_kind(path) and not _is_of_a_table(path, folder)
        if path.name in DESCRIPTIONS and path.parent == folder:
            continue
        if is_read:
            files.append(path)
        elif file_kind(path) or not ABOUT.fullmatch(path.name):
            unsupported.append(path)
    if not files:
        raise DataError(
            f"{field}: {folder}: no files of rows (got {_list(unsupported, folder)}). Fix: name a "
            f"folder of files ({ENDINGS}), or one saved by `datasets`"
        )
    if unsupported:
        raise DataError(
            f"{field}: {folder}: not all files can be read as rows (got "
            f"{_list(unsupported, folder)} next to {len(files)} files of rows). Fix: move them, or "
            f"name the files to read as sources ({ENDINGS})"
        )
    _refuse_splits(files, folder, field)
    return files


def _is_of_a_table(path: Path, folder: Path) -> bool:
    """Return True below a folder such as `_delta_log`, whose files say which others count."""
    return any(part.startswith("_") for part in path.relative_to(folder).parts[:-1])


def _walk(folder: Path) -> list[Path]:
    """List all files in a folder and its subfolders, except hidden ones and markers (`_SUCCESS`).

    A link to a folder is listed itself and not followed, since it can form a cycle.
    """
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        names = [
            name
            for name in files
            if not name.startswith(".") and (not name.startswith("_") or file_kind(Path(name)))
        ]
        paths += [Path(root) / name for name in (*names, *links)]
    return sorted(paths)


def _refuse_splits(paths: Sequence[Path], folder: Path, field: str) -> None:
    """Refuse a folder with files of several splits, to keep test rows out of the training data."""
    of_split = {split: path for path in reversed(paths) for split in _splits(path, folder)}
    if len(of_split) > 1:
        files = _list([of_split[split] for split in SPLIT_WORDS if split in of_split], folder)
        raise DataError(
            f"{field}: {folder}: the files belong to several splits (got {files}). Fix: name the "
            "files to read, or a folder of one split"
        )


def _splits(path: Path, folder: Path) -> list[str]:
    """Return the splits named in a path, such as `data/train-00000-of-00002.parquet`."""
    words = re.split(r"[^a-z]+", str(path.relative_to(folder)).lower())
    return [split for split, names in SPLIT_WORDS.items() if set(names) & set(words)]


def _list(paths: Sequence[Path], folder: Path) -> str:
    names = ", ".join(str(path.relative_to(folder)) for path in paths[:MAX_NAMED])
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return f"{names}{more}" or "none"
