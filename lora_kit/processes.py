"""This process among those that a launcher started."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce


def process_state() -> PartialState:
    """Accelerate's state: index, number and device of this process.

    Accelerate 1.15 takes processes that `torchrun` started on a machine without a GPU for one
    process each, unless it is told that the CPU is meant; each would do all the work and write.
    """
    return PartialState(cpu=not torch.cuda.is_available())


def any_process(here: bool) -> bool:
    """Whether any of the processes says so; all of them have to ask at the same place."""
    state = process_state()
    if state.num_processes == 1:
        return here
    return bool(reduce(torch.tensor(float(here), device=state.device)) > 0)
