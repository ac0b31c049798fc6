"""Files and directories that are complete or absent: written under another name, then renamed."""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.temporaries import REPLACED, delete, hidden_beside

# Of linux/fs.h and fcntl.h.
RENAME_EXCHANGE, AT_FDCWD = 2, -100


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the block succeeds."""
    with hidden_beside(path) as hidden:
        temporary = hidden / path.name
        temporary.touch()
        yield temporary
        # Libraries make files that only their owner can read.
        temporary.chmod(0o644)
        temporary.replace(path)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `path` if the block succeeds."""
    with _temporary_directory(path) as temporary:
        yield temporary
        replace_directory(temporary, path)


@contextmanager
def shared_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path`, unless another process was faster.

    For caches: whatever builds the same path builds the same content.
    """
    with _temporary_directory(path) as temporary:
        yield temporary
        try:
            temporary.chmod(0o755)
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def _temporary_directory(path: Path) -> Iterator[Path]:
    with hidden_beside(path) as hidden:
        temporary = hidden / path.name
        temporary.mkdir()
        yield temporary


def replace_directory(source: Path, path: Path) -> None:
    """Rename a directory to `path` and delete the one that was there.

    Readers find one of the two at any time, where the system and its file system can exchange two
    directories (Linux: ext4, xfs, btrfs, tmpfs). Elsewhere nothing is there for an instant; if the
    process is killed in it, the next one that writes beside `path` moves the earlier one back.
    """
    source.chmod(0o755)
    if not path.exists():
        source.rename(path)
        return
    if exchange(source, path):
        delete(source)
        return
    with hidden_beside(path) as hidden:
        (hidden / REPLACED).mkdir()
        path.rename(hidden / REPLACED / path.name)
        source.rename(path)
        # From here on, nothing moves the earlier directory back, also if it is half deleted.
        (hidden / REPLACED).rename(hidden / "deleted")


def exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step; return False if system or file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p) * 2 + (ctypes.c_uint,)
    ends = (AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second))
    return bool(rename(*ends, RENAME_EXCHANGE) == 0)


def read_json(path: Path, error: type[LoraKitError]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        error: if the file cannot be read or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path}: cannot be read as JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object (got {type(value).__name__})")
    return value


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, keys in the given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Return the value with `None` in place of infinities and NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
