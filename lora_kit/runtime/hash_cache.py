"""Hashes of large files, computed once a machine and kept in the cache folder.

Backbones and data are known by these hashes. A release does not: it reads its files again
(`lora_kit.runtime.hashes`). An entry is one small file, named by a hash of the path, device, inode,
size and times, and renamed into place: readers find a complete entry or none, and a damaged one
counts as none.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.hashes import REMEMBERED_BYTES, file_sha256, json_sha256
from lora_kit.runtime.locks import one_process_at_a_time
from lora_kit.runtime.machine import cores

# A file that changed less than this many seconds ago is not kept: it could change again without
# another time, and the clock of a file server may differ.
SETTLED_SECONDS = 5.0
# Files that are read at the same time; hashlib releases the interpreter's lock.
MAX_THREADS = 8
# Progress is shown from this number of bytes on, about ten seconds of one core.
SHOWN_BYTES = 15_000_000_000
SHA256 = re.compile(r"[0-9a-f]{64}")

Identity = dict[str, str | int]


def cached_sha256(paths: Sequence[Path]) -> list[str]:
    """Return the sha256 of each file's bytes, in hexadecimal, known ones without reading the file.

    If several processes of a machine ask for the same files, one reads them while the others wait.

    Args:
        paths: files; those below `REMEMBERED_BYTES` are always read.
    """
    found = {path: _recall(path) for path in paths}
    if None in found.values():
        name = json_sha256([_identity(path) for path in paths])
        with one_process_at_a_time(cache_directory() / "hashes" / name):
            # Another process may have had the lock.
            found = {path: _recall(path) for path in paths}
            found |= _compute([path for path, digest in found.items() if digest is None])
    return [found[path] or file_sha256(path) for path in paths]


def _recall(path: Path) -> str | None:
    """Return the hash of a file that is small or has a sound entry."""
    identity = _identity(path)
    if int(identity["size"]) < REMEMBERED_BYTES:
        return file_sha256(path)
    try:
        entry = read_json(_entry(identity), LoraKitError)
    except LoraKitError:
        return None
    digest = entry.get("sha256")
    is_sound = (
        entry.get("file") == identity and isinstance(digest, str) and SHA256.fullmatch(digest)
    )
    return digest if is_sound else None


def _compute(paths: Sequence[Path]) -> dict[Path, str]:
    """Read files, several at a time, and keep the hashes of those that did not change meanwhile."""
    started = time.time()
    before = {path: _identity(path) for path in paths}
    size = sum(int(identity["size"]) for identity in before.values())
    found: dict[Path, str] = {}
    with (
        ThreadPoolExecutor(min(cores(), MAX_THREADS)) as threads,
        meter("hashing files, GB", size / 1e9, visible=size >= SHOWN_BYTES) as progress,
    ):
        running = {threads.submit(file_sha256, path): path for path in paths}
        for one in as_completed(running):
            path = running[one]
            found[path] = one.result()
            progress.advance(int(before[path]["size"]) / 1e9)
    for path, identity in before.items():
        changed = max(int(identity["mtime_ns"]), int(identity["ctime_ns"])) / 1e9
        if _identity(path) == identity and started - changed >= SETTLED_SECONDS:
            # Without a cache that can be written, the file is read again the next time.
            with suppress(OSError):
                write_json(_entry(identity), {"file": identity, "sha256": found[path]})
    return found


def _identity(path: Path) -> Identity:
    status = path.stat()
    return {
        "path": os.path.realpath(path),
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        # Copying a file's other times does not copy this one.
        "ctime_ns": status.st_ctime_ns,
    }


def _entry(identity: Identity) -> Path:
    return cache_directory() / "hashes" / f"{json_sha256(identity)}.json"
