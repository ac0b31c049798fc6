"""What a command gives back: text or JSON on stdout."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console
from rich.markup import escape

# As torchrun, Intel MPI, Open MPI and MVAPICH call a process's number.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def stdout() -> Console:
    """The console for results; progress and errors go to stderr."""
    console = Console(highlight=False)
    # A file has no width; 80 columns would break the verdict's table.
    return console if console.is_terminal else Console(highlight=False, width=140)


def is_main_process() -> bool:
    """Of the launcher's word alone: most commands have no need to load accelerate for it."""
    found = (os.environ[name] for name in RANKS if os.environ.get(name, "").isdigit())
    return int(next(found, "0")) == 0


def print_text(text: str) -> None:
    """Print as it is, without markup and without breaking lines; one process does."""
    if is_main_process():
        stdout().print(escape(text), soft_wrap=True)


def print_json(value: object) -> None:
    """Print for a program that reads stdout; one process does."""
    if is_main_process():
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
