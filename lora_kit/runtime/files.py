"""Files and directories that are complete or absent: written under another name, then renamed."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_kit.runtime.errors import LoraKitError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that replaces `path` if the block succeeds."""
    with _temporary_beside(path) as temporary:
        yield temporary
        replace_directory(temporary, path)


@contextmanager
def shared_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path`, unless another process was faster.

    For caches: whatever builds the same path builds the same content.
    """
    with _temporary_beside(path) as temporary:
        yield temporary
        try:
            temporary.chmod(0o755)
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_directory(source: Path, path: Path) -> None:
    """Rename a directory to `path`; whatever is there is moved away first, then deleted."""
    source.chmod(0o755)
    if not path.exists():
        source.rename(path)
        return
    with _temporary_beside(path) as old:
        path.rename(old / path.name)
        source.rename(path)


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
