"""Progress bars and notes on stderr."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

# Characters that change a terminal, or reorder the text around them: control characters,
# bidirectional embeddings, overrides and isolates (https://trojansource.codes), line separators and
# lone surrogates.
_SPANS = (
    *((0, 0x20), (0x7F, 0xA0), (0x2028, 0x202F), (0x2066, 0x206A)),
    *((0xD800, 0xE000), (0xFFFE, 0x10000)),
)
INVISIBLE = [code for first, end in _SPANS for code in range(first, end)]
_VISIBLE = {code: f"[U+{code:04X}]" for code in INVISIBLE if chr(code) not in "\t\n"}


def visible(text: str) -> str:
    """Return the text with control characters written as code points, as [U+0000]."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


class VisibleConsole(Console):
    """Console that writes the control characters in texts as code points.

    Texts can come from files: names of columns, labels and models, templates, messages of
    libraries. Terminals obey some of these characters, and rich itself drops others.
    """

    def __init__(self, **options: Any):
        # No file means `:bomb:` as a picture.
        super().__init__(highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text for the terminal; rich turns each string that it prints into one here."""
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        """Pass the error on, which rich catches and answers with status 1.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


stderr = VisibleConsole(stderr=True)
# Least interval between two progress lines when stderr is not a terminal.
PROGRESS_LINE_SECONDS = 15.0
DEBUG_VARIABLE = "LORA_KIT_DEBUG"


class Meter:
    """Progress of one loop."""

    def __init__(self, description: str, total: float, progress: Progress | None):
        # Columns of a bar read markup, and no console changes their texts.
        description = escape(visible(description))
        self._description = description
        self._total = total
        self._done = 0.0
        self._tokens = 0
        self._progress = progress
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()
        if progress is not None:
            self._task = progress.add_task(description, total=total, note="", left="")
        else:
            self._print("")

    def advance(
        self, steps: float = 1, note: str = "", tokens: int = 0, left: float | None = None
    ) -> None:
        """Advance the progress.

        Args:
            steps: number of steps done since the last call.
            note: text shown beside the bar.
            tokens: number of tokens processed in these steps; above 0, tokens per second are shown.
            left: seconds that the other steps will take; by default as many as those before, each.
        """
        self._done += steps
        self._tokens += tokens
        if self._tokens:
            rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
            note = f"{note}, {rate:,.0f} token/s"
        now = time.monotonic()
        elapsed = now - self._started
        if left is None:
            left = elapsed / self._done * (self._total - self._done) if self._done else 0.0
        rest = f"{max(left, 0):.0f} s left"
        if self._progress is not None and self._task is not None:
            note = escape(visible(note))
            self._progress.update(self._task, advance=steps, note=note, left=rest)
            return
        if now - self._last_line >= PROGRESS_LINE_SECONDS or self._done >= self._total:
            self._last_line = now
            self._print(f" {escape(note)} ({elapsed:.0f} s, {rest})")

    def leave_out(self, steps: float) -> None:
        """Take off steps that need not be done."""
        self._total -= steps
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=self._total)

    def _print(self, state: str) -> None:
        stderr.print(
            f"{self._description}: {self._done:.0f}/{self._total:.0f}{state}", soft_wrap=True
        )


@contextmanager
def meter(description: str, total: float, visible: bool = True) -> Iterator[Meter]:
    """Yield a progress meter: a bar on a terminal, lines elsewhere.

    Args:
        description: label of the loop.
        total: number of steps.
        visible: if false, show nothing; false on all processes but the first.
    """
    if not visible:
        yield Meter(description, float("inf"), Progress(disable=True))
    elif stderr.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=stderr, transient=False) as progress:
            yield Meter(description, total, progress)
    else:
        yield Meter(description, total, None)


def is_debug_enabled() -> bool:
    """Return true if `--debug` is set; then every process logs, and errors show a traceback."""
    return os.environ.get(DEBUG_VARIABLE) == "1"


def say(message: str) -> None:
    """Print one line to stderr, from the main process only unless `--debug` is set."""
    from lora_kit.runtime.processes import process_state

    state = process_state()
    if is_debug_enabled():
        stderr.print(f"[{state.process_index}] {message}", soft_wrap=True, markup=False)
    elif state.is_main_process:
        stderr.print(message, soft_wrap=True, markup=False)
