"""Results of a command on stdout: text or JSON."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console
from rich.markup import escape

# Variables of torchrun, Intel MPI, Open MPI and MVAPICH for the rank of a process.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def stdout() -> Console:
    """Return the console for results; progress and errors go to stderr."""
    console = Console(highlight=False)
    # A file has no width; 80 columns would break the verdict's table.
    return console if console.is_terminal else Console(highlight=False, width=140)


def is_main_process() -> bool:
    """Return whether this is process 0 by the launcher's variables, without loading accelerate."""
    found = (os.environ[name] for name in RANKS if os.environ.get(name, "").isdigit())
    return int(next(found, "0")) == 0


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
