"""Locks between the processes of a machine that would all do the same work."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.hashes import json_sha256


@contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time through, and the others wait, for work whose result is kept.

    The process that comes through looks for the result before it does the work. A process that ends
    gives its lock back. Where the file system has no locks or cannot be written, none waits.

    Args:
        path: path of the result; the lock is a file of the cache folder, named by a hash of it.
    """
    lock = cache_directory() / "locks" / json_sha256(str(path.absolute()))
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
        yield
