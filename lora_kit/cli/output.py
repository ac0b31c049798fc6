"""Results of a command on stdout: text or JSON."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from rich.console import Console

from lora_kit.runtime.console import INVISIBLE, VisibleConsole
from lora_kit.runtime.launcher import is_main_process

# JSON escapes the first 32 control characters only; a terminal obeys others, too.
_ESCAPED = {code: f"\\u{code:04x}" for code in INVISIBLE if code >= ord(" ")}


class _Reserved:
    """Stream of results while stdout is kept for them; `None` otherwise."""

    results: TextIO | None = None


def reserve_stdout() -> None:
    """Keep stdout for results: what else is printed, such as DeepSpeed's log, goes to stderr."""
    if _Reserved.results is None:
        _Reserved.results, sys.stdout = sys.stdout, sys.stderr


def release_stdout() -> None:
    """Undo `reserve_stdout`, at the end of a command."""
    if _Reserved.results is not None:
        sys.stdout, _Reserved.results = _Reserved.results, None


def _results() -> TextIO:
    return _Reserved.results or sys.stdout


def stdout() -> Console:
    """Return the console for results; progress and errors go to stderr."""
    stream = _results()
    console = VisibleConsole(file=stream)
    # A file has no width; 80 columns would break the verdict's table.
    return console if console.is_terminal else VisibleConsole(file=stream, width=140)


def print_text(text: str) -> None:
    """Print text without markup and line breaks, on process 0."""
    if is_main_process():
        stdout().print(text, soft_wrap=True, markup=False)


def print_json(value: object) -> None:
    """Print JSON for a program that reads stdout, on process 0."""
    if is_main_process():
        text = json.dumps(value, indent=2, ensure_ascii=False)
        _write(text.translate(_ESCAPED) + "\n")


def print_raw(text: str) -> None:
    """Print text as it is, on process 0."""
    if is_main_process():
        _write(text.rstrip("\n") + "\n")


def _write(text: str) -> None:
    _results().write(text)
    # A reader that is gone is noticed here, and not when Python ends.
    _results().flush()
