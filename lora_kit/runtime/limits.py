"""Limits of time and memory for work that somebody else's file determines."""

from __future__ import annotations

import mmap
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

T = TypeVar("T")

# Size of this process in pages; Linux only.
SIZE = Path("/proc/self/statm")
IS_LINUX = SIZE.exists()
# Seconds for which a size is taken as known: reading it takes as long as a small piece of work.
KNOWN = 0.5


class TooSlowError(Exception):
    """Raised by `within_limits` when the time is over."""


class _TimeIsOverError(BaseException):
    """Raised inside of the work; no `Exception`, which jinja's optimizer swallows."""


class _Process:
    """State of this process: its size when last read, and true while the time is limited."""

    size_bytes = 0
    size_read_at = float("-inf")
    is_limited = False


def within_limits(work: Callable[[], T], seconds: float, more_bytes: int | None = None) -> T:
    """Return the result of a function, under limits of time and, on Linux, of memory.

    The time is limited in the main thread only, where Python handles signals; loops of Python,
    regular expressions and arithmetic of large numbers are interrupted. The limits themselves take
    microseconds. Work under limits cannot call this function.

    Args:
        work: function to call; called again if it may have failed for memory that other work took.
        seconds: longest duration.
        more_bytes: most address space by which the process may grow; `None` for no limit.

    Raises:
        TooSlowError: if the time is over.
        MemoryError: if the memory is used up.
    """
    size_is_new = _Process.size_read_at == float("-inf")
    try:
        return _timed(work, seconds, more_bytes)
    except MemoryError:
        _Process.size_read_at = float("-inf")
        if size_is_new or more_bytes is None:
            raise
    return _timed(work, seconds, more_bytes)


def _timed(work: Callable[[], T], seconds: float, more_bytes: int | None) -> T:
    is_main = threading.get_ident() == threading.main_thread().ident
    if not is_main or not hasattr(signal, "setitimer"):
        return _in_memory(work, more_bytes)
    if signal.getsignal(signal.SIGALRM) is not _end:
        signal.signal(signal.SIGALRM, _end)
    # No context manager: the signal may arrive in its `__exit__`, before that stops the timer.
    try:
        _Process.is_limited = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return _in_memory(work, more_bytes)
    except _TimeIsOverError:
        raise TooSlowError(f"more than {seconds:g} s") from None
    finally:
        _Process.is_limited = False
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if _Process.is_limited:
        raise _TimeIsOverError


def _in_memory(work: Callable[[], T], more_bytes: int | None) -> T:
    if more_bytes is None or resource is None or not IS_LINUX:
        return work()
    now = time.monotonic()
    if now - _Process.size_read_at > KNOWN:
        _Process.size_bytes = int(SIZE.read_bytes().split()[0]) * mmap.PAGESIZE
        _Process.size_read_at = now
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _Process.size_bytes + more_bytes
    try:
        # The soft limit may rise again, up to the hard one.
        lowered = most if soft == resource.RLIM_INFINITY else min(most, soft)
        resource.setrlimit(resource.RLIMIT_AS, (lowered, hard))
        return work()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
