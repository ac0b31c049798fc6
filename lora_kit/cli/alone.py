"""Commands that one process runs, also where a launcher started several."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from lora_kit.runtime.launcher import forget_launcher, is_main_process

P = ParamSpec("P")
T = TypeVar("T")


def alone(command: Callable[P, T]) -> Callable[P, T]:
    """Run a command on process 0 only; the other processes exit with status 0."""

    @functools.wraps(command)
    def by_the_first(*args: P.args, **kwargs: P.kwargs) -> T:
        if not is_main_process():
            raise typer.Exit
        forget_launcher(os.environ)
        return command(*args, **kwargs)

    return by_the_first
