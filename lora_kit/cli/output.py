"""Results of a command on stdout: text or JSON."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.markup import escape

from lora_kit.runtime.launcher import is_main_process


def stdout() -> Console:
    """Return the console for results; progress and errors go to stderr."""
    console = Console(highlight=False)
    # A file has no width; 80 columns would break the verdict's table.
    return console if console.is_terminal else Console(highlight=False, width=140)


def print_text(text: str) -> None:
    """Print text without markup and line breaks, on process 0."""
    if is_main_process():
        stdout().print(escape(text), soft_wrap=True)


def print_json(value: object) -> None:
    """Print JSON for a program that reads stdout, on process 0."""
    if is_main_process():
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_raw(text: str) -> None:
    """Print text as it is, on process 0."""
    if is_main_process():
        sys.stdout.write(text.rstrip("\n") + "\n")
