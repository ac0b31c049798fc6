"""Limits of time and memory: work is stopped wherever it is, and the process is as before."""

import contextlib
import re
import resource
import signal
import threading
import time

import pytest

from lora_kit.runtime import limits
from lora_kit.runtime.limits import TooSlowError, within_limits

GIGABYTE = 2**30


def endless_loop() -> None:
    while True:
        pass


def backtracking() -> None:
    re.fullmatch("(a+)+$", "a" * 60 + "b")


def swallowing() -> None:
    while True:
        with contextlib.suppress(Exception):
            endless_loop()


def long_call_that_ends_last() -> int:
    return ("a" * 4 * 10**8).count("ab")


@pytest.fixture(autouse=True)
def everything_is_as_before() -> object:
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("work", [endless_loop, backtracking, swallowing, long_call_that_ends_last])
def test_work_without_end_is_stopped(work: object) -> None:
    started = time.monotonic()
    with pytest.raises(TooSlowError, match=r"more than 0.1 s"):
        within_limits(work, 0.1, GIGABYTE)  # type: ignore[arg-type]
    assert time.monotonic() - started < 20


def test_work_that_needs_too_much_memory_is_stopped() -> None:
    with pytest.raises(MemoryError):
        within_limits(lambda: "a" * 10**12, 10, GIGABYTE)
    assert within_limits(lambda: "a" * 10**6, 10, GIGABYTE) == "a" * 10**6


def test_memory_that_others_took_since_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # The size that is taken as known is too small by far.
    monkeypatch.setattr(limits._Process, "size_bytes", 0)
    monkeypatch.setattr(limits._Process, "size_read_at", time.monotonic())
    assert len(within_limits(lambda: bytearray(10**8), 10, 2 * 10**8)) == 10**8


def test_errors_of_the_work_are_its_own() -> None:
    with pytest.raises(KeyError):
        within_limits(lambda: {}["a"], 10, GIGABYTE)


def test_another_thread_has_a_limit_of_memory_only() -> None:
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(within_limits(lambda: 7, 0.001, GIGABYTE))
    )
    thread.start()
    thread.join()
    assert found == [7]


def test_the_limits_take_little_time() -> None:
    def seconds(count: int = 2000) -> float:
        started = time.perf_counter()
        for _ in range(count):
            within_limits(int, 10, GIGABYTE)
        return (time.perf_counter() - started) / count

    # A template takes a hundred microseconds and more.
    assert min(seconds() for _ in range(5)) < 60e-6
