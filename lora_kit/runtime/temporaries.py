"""Hidden directories for unfinished files; those of dead processes are removed by the next one.

A directory is locked while its process lives, so that neither a reused process id nor a container
with ids of its own can be mistaken for a live owner. Its name says on which machine it was made:
on a file system that several machines share, a lock may be known to one of them only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# File that the owner of a directory holds a lock on, not the directory: NFS locks no directories.
OWNER = ".owner"
# Folder of an earlier directory that is complete, and being replaced.
REPLACED = ".replaced"
SUFFIX = ".temporary"
NAME = re.compile(rf"\..*-([0-9a-f]{{8}})-\w+{re.escape(SUFFIX)}")
# Characters of a path's name in the name of its temporary directory; names have 255 bytes at most.
MAX_NAMED = 50
# Directories of this process: some file systems lock for a process as a whole.
_own: set[Path] = set()


@contextmanager
def hidden_beside(path: Path) -> Iterator[Path]:
    """Yield a new hidden directory in the folder of `path`; it is removed at the end.

    The folder is made if it does not exist, and rid of the leftovers of dead processes.
    """
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    hidden, owner = _create(folder, path.name)
    with owner:
        _own.add(hidden)
        try:
            yield hidden
        finally:
            with suppress(OSError):
                _dispose(hidden)
            _own.discard(hidden)


def remove_leftovers(folder: Path) -> None:
    """Remove hidden directories whose process died on this machine.

    A directory that such a process was replacing, and had moved away, is moved back.
    """
    for hidden in _temporaries(folder.absolute()):
        match = NAME.fullmatch(hidden.name)
        if match is None or match[1] != _host() or hidden in _own:
            continue
        with suppress(OSError):
            try:
                owner = (hidden / OWNER).open("r+")
            except FileNotFoundError:
                hidden.rmdir()  # its process died, or is about to create the file, and starts anew
                continue
            with owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_open_at(owner, hidden / OWNER):
                    _dispose(hidden)


def is_empty(directory: Path) -> bool:
    """Return True if a directory holds nothing but temporary directories of this module."""
    return all(NAME.fullmatch(path.name) for path in directory.iterdir())


def delete(path: Path) -> None:
    """Delete a file, a link, or a directory with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _temporaries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / one.name for one in entries if one.name.endswith(SUFFIX)]
    except OSError:
        return []


def _create(folder: Path, name: str) -> tuple[Path, IO[str]]:
    """Create a directory and lock it; others may remove it until it is locked."""
    while True:
        hidden = Path(
            tempfile.mkdtemp(prefix=f".{name[:MAX_NAMED]}-{_host()}-", suffix=SUFFIX, dir=folder)
        )
        try:
            owner = (hidden / OWNER).open("w")
        except FileNotFoundError:
            continue
        # Without locks on a file system, leftovers stay there.
        with suppress(OSError):
            fcntl.flock(owner, fcntl.LOCK_EX)
        if _is_open_at(owner, hidden / OWNER):
            return hidden, owner
        owner.close()


def _is_open_at(file: IO[str], path: Path) -> bool:
    """Return True if an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _dispose(hidden: Path) -> None:
    """Remove a directory, its owner's file last; an earlier directory inside goes back first."""
    replaced = hidden / REPLACED
    for earlier in replaced.iterdir() if replaced.is_dir() else ():
        if not os.path.lexists(hidden.parent / earlier.name):
            earlier.rename(hidden.parent / earlier.name)
    for path in hidden.iterdir():
        if path.name != OWNER:
            delete(path)
    (hidden / OWNER).unlink()
    hidden.rmdir()


def _host() -> str:
    """Return a digest of this machine's name, which is not made public itself."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
