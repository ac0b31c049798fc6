"""Hashes that identify files and values."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

# Smaller files are hashed again faster than it takes to look whether they have changed.
REMEMBERED_BYTES = 1 << 20
# File systems round times up to this, in nanoseconds; a change within it may leave no trace.
TIME_GRANULARITY = 20_000_000

_known: dict[tuple[int, ...], str] = {}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal.

    The hash of a large file is remembered within the process, for as long as device, inode, size
    and times of the file stay the same: weights are hashed once, whoever asks.
    """
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return _hash(path)
    # A file that changed just now could change again without another time.
    age = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
    if 0 <= age < TIME_GRANULARITY:
        time.sleep((TIME_GRANULARITY - age) / 1e9)
    identity = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    if identity not in _known:
        _known[identity] = _hash(path)
    return _known[identity]


def changed_files(directory: Path, recorded: Mapping[str, str]) -> list[str]:
    """Return the names of recorded files that are missing from a flat directory, or have changed.

    Args:
        directory: directory of the files.
        recorded: sha256 of each file by name; a name in another directory counts as missing.
    """
    return [
        name
        for name, digest in recorded.items()
        if (path := directory / name).parent != directory
        or not path.is_file()
        or file_sha256(path) != digest
    ]


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_sha256(value: object) -> str:
    """Return the sha256 of a value as JSON, in hexadecimal.

    The order of a mapping's keys does not count. A value without a JSON form counts as its `str`.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
