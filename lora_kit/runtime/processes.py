"""Communication between the processes that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch.distributed.distributed_c10d import Store

from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.launcher import USE_CPU, is_flag_set

T = TypeVar("T")
# Merging and preparing data run on one process while the others wait. A process that died is
# detected by the launcher, or by its closed connection, long before this timeout.
COLLECTIVE_TIMEOUT = timedelta(hours=6)


def process_state() -> PartialState:
    """Return Accelerate's state: index, number of processes and device of this process.

    Without `cpu=True`, Accelerate 1.15 treats each process that `torchrun` started on a machine
    without a GPU as the only one; every process would then do all the work and write all files.
    """
    # Accelerate reads this variable only later.
    use_cpu = is_flag_set(os.environ, USE_CPU)
    return PartialState(cpu=use_cpu or not torch.cuda.is_available(), timeout=COLLECTIVE_TIMEOUT)


def any_process(here: bool) -> bool:
    """Return true if `here` is true on any process; a collective call."""
    state = process_state()
    if state.num_processes == 1:
        return here
    return bool(reduce(torch.tensor(float(here), device=state.device)) > 0)


def require_agreement(facts: Mapping[str, str]) -> None:
    """Refuse to continue if the processes were given different inputs; a collective call.

    Call this before any of the inputs is used.

    Args:
        facts: values that must be equal on all processes, by name.

    Raises:
        LoraKitError: on every process, naming the first process that differs and its inputs.
    """
    if process_state().num_processes == 1:
        return
    gathered = gather_object([dict(facts)])
    for number, values in enumerate(gathered):
        differing = [name for name, value in values.items() if value != gathered[0].get(name)]
        if differing:
            raise LoraKitError(
                f"process {number}: different {' and '.join(differing)} than process 0. Fix: give "
                "all machines the same files, packages and command"
            )


def shared_store() -> Store | None:
    """Return the launch's key-value store, for shared counters; `None` for a single process.

    An update takes 0.1 ms on one machine and, unlike a collective, blocks no other process.
    """
    group = dist.group.WORLD
    if process_state().num_processes == 1 or group is None:
        return None
    return group.get_group_store()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Call `make` on the main process and return its result on all; a collective call.

    Args:
        make: function to call; its result must be picklable.

    Raises:
        LoraKitError, OSError: the error of `make`, on all processes.
    """
    state = process_state()
    if state.num_processes == 1:
        return make()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = make()
        except (LoraKitError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=state.device)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result
