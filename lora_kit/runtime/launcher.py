"""Environment variables of torchrun, accelerate, Intel MPI, Open MPI and MVAPICH.

Imports no torch, so that a command can read them at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# The rank on a machine, and the address at which the processes meet.
RENDEZVOUS = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PREFIXES = (
    "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "TORCHELASTIC_", "PMI_", "OMPI_", "MV2_",
)  # fmt: skip
# Set by `use_cpu: true` of a launch file; says nothing about other processes.
USE_CPU = "ACCELERATE_USE_CPU"


def launcher_numbers(environment: Mapping[str, str], names: tuple[str, ...]) -> Iterator[int]:
    """Yield the values of variables that are set to whole numbers."""
    for name in names:
        if (value := environment.get(name, "")).isdigit():
            yield int(value)


def is_flag_set(environment: Mapping[str, str], name: str) -> bool:
    """Return true if a variable of accelerate is set to true."""
    return environment.get(name, "false").lower() in ("true", "1")


def is_main_process() -> bool:
    """Return true if this is process 0 by the launcher's variables."""
    return next(launcher_numbers(os.environ, RANKS), 0) == 0


def number_of_processes() -> int:
    """Return the number of processes that the launcher set; 1 without a launcher."""
    return max(launcher_numbers(os.environ, WORLD_SIZES), default=1)


def forget_launcher(environment: MutableMapping[str, str]) -> None:
    """Delete the variables by which a process would wait for the others."""
    for name in list(environment):
        named = name in RENDEZVOUS or name in RANKS or name in WORLD_SIZES
        if (named or name.startswith(PREFIXES)) and name != USE_CPU:
            del environment[name]
