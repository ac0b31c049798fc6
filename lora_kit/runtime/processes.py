"""This process among those that a launcher started."""

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

T = TypeVar("T")
# Merging, and making data ready, is one process's work, for which the others wait. One that is gone
# is noticed by the launcher, or by the connection that it leaves.
PATIENCE = timedelta(hours=6)


def process_state() -> PartialState:
    """Accelerate's state: index, number and device of this process.

    Accelerate 1.15 takes processes that `torchrun` started on a machine without a GPU for one
    process each, unless it is told that the CPU is meant; each would do all the work and write.
    """
    # As `use_cpu: true` of a launch file sets it, which accelerate reads later than here.
    wanted = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1")
    return PartialState(cpu=wanted or not torch.cuda.is_available(), timeout=PATIENCE)


def any_process(here: bool) -> bool:
    """Whether any of the processes says so; all of them have to ask at the same place."""
    state = process_state()
    if state.num_processes == 1:
        return here
    return bool(reduce(torch.tensor(float(here), device=state.device)) > 0)


def require_agreement(facts: Mapping[str, str]) -> None:
    """Refuse to go on where a process was given something else than the first one.

    All processes have to ask at the same place, before anything of it is used.

    Args:
        facts: what has to be the same everywhere, by name.

    Raises:
        LoraKitError: on every process, naming the first that differs and in what.
    """
    if process_state().num_processes == 1:
        return
    of_all = gather_object([dict(facts)])
    for number, of_one in enumerate(of_all):
        other = [name for name, value in of_one.items() if value != of_all[0].get(name)]
        if other:
            raise LoraKitError(
                f"process {number} has other {' and '.join(other)} than process 0: give all "
                "machines the same files, packages and command"
            )


def shared_store() -> Store | None:
    """What the processes of a launch met at, for counts that all add to; `None` of one process.

    Cheaper than a collective, and nobody waits: 0.1 ms on one machine.
    """
    group = dist.group.WORLD
    if process_state().num_processes == 1 or group is None:
        return None
    return group.get_group_store()


def made_by_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all of them; if it fails, they all do, by the same error.

    All have to ask at the same place. What is made has to be picklable.

    Raises:
        LoraKitError, OSError: that `make` has raised.
    """
    state = process_state()
    if state.num_processes == 1:
        return make()
    found: list[Any] = [None, None]
    if state.is_main_process:
        try:
            found[0] = make()
        except (LoraKitError, OSError) as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0, device=state.device)
    if found[1] is not None:
        raise found[1]
    made: T = found[0]
    return made
