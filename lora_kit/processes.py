"""This process among those that a launcher started."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce

from lora_kit.errors import LoraKitError

# Merging, and making data ready, is one process's work, for which the others wait. One that is gone
# is noticed by the launcher, or by the connection that it leaves.
PATIENCE = timedelta(hours=6)


def process_state() -> PartialState:
    """Accelerate's state: index, number and device of this process.

    Accelerate 1.15 takes processes that `torchrun` started on a machine without a GPU for one
    process each, unless it is told that the CPU is meant; each would do all the work and write.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


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
