"""Guarded cases: each has its time, and its record is on disk before the next one starts.

A case that raises or exceeds its time is recorded, and the next one runs. A case that hangs in
compiled code, where no exception reaches it, ends the process after a grace period.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

Figures = dict[str, Any]
STEPS = "steps.json"
OK, SKIPPED, FAILED, TIMED_OUT = "ok", "skipped", "failed", "timed out"
# Seconds after its time until a case is taken to hang, and exit status then.
GRACE, HUNG = 20.0, 70
# Signal that interrupts a case that exceeds its time, and seconds between two of them.
RING, INTERVAL = signal.SIGUSR2, 2.0
TRACEBACK_LINES = 12


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: name within its step.
        run: returns figures as JSON values; raises `Unavailable` if it cannot be made here.
        needs: modules without which it is skipped.
        seconds: largest duration; `None` for what is left of the step.
    """

    name: str
    run: Callable[[], Figures]
    needs: Sequence[str] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Step:
    """Cases that share a time limit and a state.

    Attributes:
        name: name of the step.
        seconds: largest duration of all cases together.
        cases: returns the cases, in order; called when the step starts.
        needs: modules without which the step is skipped.
    """

    name: str
    seconds: float
    cases: Callable[[], Sequence[Case]]
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Record:
    """Outcome of a case.

    Attributes:
        step: name of the step.
        case: name of the case; empty if the step has none because it was skipped or failed.
        outcome: `ok`, `skipped`, `failed` or `timed out`.
        seconds: duration.
        figures: result of the case.
        reason: why there is no result.
        traceback: last lines of an exception's traceback.
        peak_memory: largest number of bytes allocated on the GPU; `None` without one.
    """

    step: str
    case: str
    outcome: str
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    reason: str = ""
    traceback: tuple[str, ...] = ()
    peak_memory: int | None = None


class Unavailable(Exception):  # noqa: N818
    """A case that cannot be run on this machine or in this version; the message is the reason."""


class _TimeUp(BaseException):
    """Not an `Exception`, since code between the watchdog and the case may handle those."""


class Runner:
    """Runs steps within a budget and writes their records.

    Attributes:
        records: records so far.
    """

    def __init__(
        self,
        output: Path,
        seconds: float,
        after: Callable[[Sequence[Record]], None] = lambda _: None,
        grace: float = GRACE,
        patience: float = 1.0,
    ):
        """Create the folder.

        Args:
            output: folder of `steps.json`.
            seconds: budget of all steps.
            after: called with all records after each one, to summarize them.
            grace: seconds after which a case that exceeded its time is taken to hang.
            patience: factor of the times of steps and cases.
        """
        output.mkdir(parents=True, exist_ok=True)
        self.records: list[Record] = []
        self._output = output
        self._after = after
        self._grace = grace
        self._patience = patience
        self._seconds = seconds
        self._started = time.monotonic()

    def run(self, steps: Sequence[Step]) -> None:
        """Run all steps."""
        for step in steps:
            self._run_step(step)

    def _run_step(self, step: Step) -> None:
        end = min(time.monotonic() + step.seconds * self._patience, self._started + self._seconds)
        reason = _missing(step.needs)
        if reason:
            self._add(Record(step.name, "", SKIPPED, reason=reason))
            return
        try:
            cases = step.cases()
        except Exception as error:
            self._add(Record(step.name, "", FAILED, reason=_said(error), traceback=_end(error)))
            return
        for case in cases:
            self._run_case(step, case, end)

    def _run_case(self, step: Step, case: Case, end: float) -> None:
        left = end - time.monotonic()
        seconds = left if case.seconds is None else min(left, case.seconds * self._patience)
        reason = _missing(case.needs) or ("" if seconds > 0 else "no time left")
        if reason:
            self._add(Record(step.name, case.name, SKIPPED, reason=reason))
            return
        self._write(running=f"{step.name}: {case.name}")
        print(f"{step.name}: {case.name}", file=sys.stderr, flush=True)
        started = time.monotonic()

        def record(outcome: str, **fields: Any) -> Record:
            spent = time.monotonic() - started
            return Record(step.name, case.name, outcome, spent, peak_memory=_peak(), **fields)

        def give_up() -> None:
            self._add(record(TIMED_OUT, reason=f"hangs after {seconds:.0f} s; the look ends"))
            os._exit(HUNG)

        _forget()
        try:
            with _limited(seconds, self._grace, give_up):
                found = record(OK, figures=case.run())
        except Unavailable as error:
            found = record(SKIPPED, reason=str(error))
        except _TimeUp as error:
            reason = f"took longer than {seconds:.0f} s"
            found = record(TIMED_OUT, reason=reason, traceback=_end(error))
        except Exception as error:
            found = record(FAILED, reason=_said(error), traceback=_end(error))
        self._add(found)

    def _add(self, record: Record) -> None:
        self.records.append(record)
        self._write()
        self._after(self.records)

    def _write(self, running: str = "") -> None:
        """Write all records; a reader never sees half of the file."""
        document = {
            "seconds": round(time.monotonic() - self._started, 1),
            "running": running,
            "records": [asdict(one) for one in self.records],
        }
        write_json(self._output / STEPS, document)


def write_json(path: Path, document: Any) -> None:
    """Replace a file by a document; numbers that JSON lacks become texts."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(_finite(document), indent=1, default=str) + "\n")
    partial.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return round(value, 6) if isinstance(value, float) and abs(value) > 1e-3 else value


@contextmanager
def _limited(seconds: float, grace: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Raise `_TimeUp` in the main thread after some seconds; call `give_up` if that has no effect.

    Raised again and again, since an exception is lost in a destructor. Not by SIGALRM, with which
    the package limits the time of patterns.
    """
    over = threading.Event()

    def ring(_number: int, _frame: FrameType | None) -> None:
        if not over.is_set():
            raise _TimeUp

    def watch() -> None:
        if over.wait(seconds):
            return
        end = time.monotonic() + grace
        while time.monotonic() < end:
            signal.pthread_kill(threading.main_thread().ident or 0, RING)
            if over.wait(INTERVAL):
                return
        give_up()

    before = signal.signal(RING, ring)
    watchdog = threading.Thread(target=watch, daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        over.set()
        watchdog.join()
        signal.signal(RING, before)


def _missing(modules: Sequence[str]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:600]


def _end(error: BaseException) -> tuple[str, ...]:
    """Return the last lines of a traceback as texts; the exception itself would hold tensors."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return tuple(line[:300] for line in lines[-TRACEBACK_LINES:])


def _forget() -> None:
    """Free what the case before left, and start counting the peak anew."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())
