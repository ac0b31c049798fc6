"""Commands that one process runs, also where a launcher started several."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from lora_kit.cli.output import is_main_process

P = ParamSpec("P")
T = TypeVar("T")
# Variables by which a process would wait for the others.
OF_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PMI_", "OMPI_", "MV2_")
# Not about other processes.
KEPT = ("ACCELERATE_USE_CPU",)


def alone(command: Callable[P, T]) -> Callable[P, T]:
    """Run a command on process 0 only; the other processes exit with status 0."""

    @functools.wraps(command)
    def by_the_first(*args: P.args, **kwargs: P.kwargs) -> T:
        if not is_main_process():
            raise typer.Exit
        for name in list(os.environ):
            if name in OF_LAUNCHERS or (name.startswith(PREFIXES) and name not in KEPT):
                del os.environ[name]
        return command(*args, **kwargs)

    return by_the_first
