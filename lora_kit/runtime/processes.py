"""Communication between the processes that a launcher started."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object, reduce
from torch.distributed.distributed_c10d import Store

from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.launcher import USE_CPU, forget_launcher, is_flag_set

T = TypeVar("T")
# Merging and preparing data run on one process while the others wait. A process that died is
# detected by the launcher, or by its closed connection, long before this timeout.
COLLECTIVE_TIMEOUT = timedelta(hours=6)
# Seconds that a process may take to end; one with much memory on a GPU takes some.
ENDING_SECONDS = 120


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
                f"process {number}: differs from process 0 in {' and '.join(differing)}. Fix: give "
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


def continue_alone() -> None:
    """End all processes but the main one, which goes on as if it had been started alone.

    A collective call. When it returns, the other processes of this machine are gone, and so is
    their memory on its GPUs.

    Raises:
        SystemExit: on the other processes, with status 0.
        LoraKitError: if a process of this machine does not end.
    """
    state = process_state()
    if state.num_processes > 1:
        here = socket.gethostname(), os.getpid()
        processes = gather_object([here])
        state.wait_for_everyone()
    if dist.is_initialized():
        dist.destroy_process_group()
    if state.num_processes > 1:
        if not state.is_main_process:
            raise SystemExit(0)
        _wait_until_ended([pid for host, pid in processes if host == here[0] and pid != here[1]])
    forget_launcher(os.environ)
    # Accelerate has no public way to begin anew in a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if "transformers.integrations.deepspeed" in sys.modules:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # Under ZeRO-3, models would be loaded in shards of the processes that are gone.
        unset_hf_deepspeed_config()


def _wait_until_ended(pids: Sequence[int]) -> None:
    """Wait for processes that are not children of this one.

    Raises:
        LoraKitError: if one of them is still there after `ENDING_SECONDS`.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while left := [pid for pid in pids if is_running(pid)]:
        if time.monotonic() > deadline:
            raise LoraKitError(
                f"process {left[0]}: has not ended after {ENDING_SECONDS} s, and its memory is "
                "needed. Fix: end it, then run lora-kit again without a launcher"
            )
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Return true unless a process has ended; its launcher may not have asked for its status."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
