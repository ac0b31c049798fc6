"""Files of rows: which endings are read, how a compressed one is unpacked, and what a folder holds.

A folder is read as `datasets.load_dataset` reads one, with what lies in the folders below it, but
nothing is left out without a word: a file that is no row of data and not known to be none is named.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lora_kit.data.files.readers import READERS
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import whole_file
from lora_kit.runtime.hashes import file_sha256

LINES = (".jsonl", ".ndjson")
SUFFIXES = (*LINES, ".json", *READERS)
# What Arrow calls the compression of an ending.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
ENDINGS = f"{', '.join(SUFFIXES)}, also with {', '.join(COMPRESSIONS)} behind it"
# What lies beside rows and holds none: texts about them, and what `datasets` writes of its own.
ABOUT = re.compile(r"(readme|licen[sc]e|copying|notice|citation)\b.*", re.IGNORECASE)
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# Words of a path that tell a split, as `datasets` knows them.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Files that a message names.
NAMED = 5


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Attributes:
        given: as its user knows it.
        kind: the ending that says how it is read.
        path: what is read: the same file, or what it was unpacked to.
    """

    given: Path
    kind: str
    path: Path


def kind_of(path: Path) -> str:
    """The ending by which a file is read, without that of its compression; empty if it is not."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    ending = name.suffix.lower()
    return ending if ending in SUFFIXES else ""


def data_file(path: Path) -> DataFile:
    """A file that can be read, unpacked if it is compressed.

    Raises:
        DataError: if it is compressed and cannot be unpacked.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = kind_of(path)
    return DataFile(path, kind, _unpacked(path, kind, compression) if compression else path)


def _unpacked(path: Path, kind: str, compression: str) -> Path:
    """What a compressed file holds, kept in the cache by its content: rows are read by number."""
    try:
        target = cache_directory() / "unpacked" / f"{file_sha256(path)}{kind}"
        if not target.is_file():
            with (
                whole_file(target) as temporary,
                pa.input_stream(str(path), compression=compression) as packed,
                temporary.open("wb") as stream,
            ):
                shutil.copyfileobj(packed, stream)
    except OSError as error:
        raise DataError(f"{path}: cannot be unpacked as {compression}: {error}") from error
    return target


def files_in(folder: Path, field: str) -> list[Path]:
    """The files of rows in a folder and those below it, by their paths.

    Args:
        folder: that is there.
        field: of the recipe or suite, for messages.

    Raises:
        DataError: if there are none, files that cannot be read, or files of several splits.
    """
    found, strange = [], []
    for path in _walked(folder):
        if path.is_file() and kind_of(path) and path.name not in DESCRIPTIONS:
            found.append(path)
        elif path.name not in DESCRIPTIONS and not ABOUT.fullmatch(path.name):
            strange.append(path)
    if not found:
        raise DataError(
            f"{field}: {folder}: no directory that `datasets` saved, and no files ({ENDINGS}) lie "
            f"in it{_named(strange, folder, '; found ')}"
        )
    if strange:
        raise DataError(
            f"{field}: {folder}: beside {len(found)} files of rows lies what cannot be read as "
            f"rows: {_named(strange, folder)}. Move it elsewhere, or name the files to read as "
            f"sources; possible: {ENDINGS}"
        )
    _refuse_splits(found, folder, field)
    return found


def _walked(folder: Path) -> list[Path]:
    """All that lies in a folder and below, but what is hidden or a mark of Spark's (`_SUCCESS`).

    A link to a folder is not followed, for it may lead back, and stands for itself.
    """
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        names = [name for name in files if not name.startswith((".", "_"))]
        paths += [Path(root) / name for name in (*names, *links)]
    return sorted(paths)


def _refuse_splits(paths: Sequence[Path], folder: Path, field: str) -> None:
    """Refuse to learn from what is there to be tested with."""
    of_split = {split: path for path in reversed(paths) for split in _splits(path, folder)}
    if len(of_split) > 1:
        named = _named([of_split[split] for split in SPLIT_WORDS if split in of_split], folder)
        raise DataError(
            f"{field}: {folder}: files of several splits lie in it: {named}. A folder is read "
            "whole; name the files to read, or a folder of one split"
        )


def _splits(path: Path, folder: Path) -> list[str]:
    """The splits that a path tells of by its words, as `data/train-00000-of-00002.parquet`."""
    words = re.split(r"[^a-z]+", str(path.relative_to(folder)).lower())
    return [split for split, names in SPLIT_WORDS.items() if set(names) & set(words)]


def _named(paths: Sequence[Path], folder: Path, before: str = "") -> str:
    if not paths:
        return ""
    names = ", ".join(str(path.relative_to(folder)) for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{before}{names}{more}"
