"""Run lora-kit on CPU processes as a launch file of FSDP 2 starts it on GPUs.

    torchrun --standalone --nproc-per-node N -m tests.standins.gloo_fsdp2 \
        FILE COMMAND... [+ FILE COMMAND...]

Accelerate reads the file and runs FSDP 2 as on GPUs. It is made to believe that the processes have
accelerators, and given the CPU as the device and gloo as the backend; nothing else is changed. The
commands run one after the other in the same processes, which saves imports; with `none` instead of
a file, a command runs data parallel. No training takes the products of `faster_on_cpu`, which no
GPU has, so that trainings that differ can do so by their sharding alone. Environment variable
SIGNAL_AT_STEP: the first process is sent SIGUSR1 in that step, as a cluster sends it before a time
limit.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import TrainerCallback, TrainerState

from lora_kit.cli.app import app
from lora_kit.runtime.errors import TrainingInterruptedError
from lora_kit.runtime.processes import COLLECTIVE_TIMEOUT
from lora_kit.training import setup, trainer

BETWEEN = "+"
SET_BY_ACCELERATE = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
REAL = PartialState._prepare_backend, PartialState.set_device


def launch_variables(file: Path) -> dict[str, str]:
    """Return the environment variables that `accelerate launch` sets for a file's processes."""
    command = ["--config_file", str(file), "--num_machines", "1", "-m", "lora_kit"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    made = prepare_multi_gpu_env(arguments)
    return {name: made[name] for name in made if name.startswith(SET_BY_ACCELERATE)}


def prepare_backend(
    state: PartialState, *arguments: Any, **named: Any
) -> tuple[str, DistributedType]:
    if "RANK" not in os.environ:  # the main process after the others have ended
        alone: tuple[str, DistributedType] = REAL[0](state, *arguments, **named)
        return alone
    return "gloo", DistributedType.MULTI_GPU


def set_device(state: PartialState) -> None:
    state.device = torch.device("cpu")


class SignalAtStep(TrainerCallback):  # type: ignore[misc]
    """Callback that sends SIGUSR1 to the first process in a step."""

    def __init__(self, step: int):
        self._step = step

    def on_step_begin(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        # `global_step` counts finished steps.
        if state.global_step + 1 == self._step and state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGUSR1)


def run(launcher: str, arguments: list[str]) -> None:
    """Run a command of lora-kit as one of the processes of a launch file."""
    for name in list(os.environ):
        if name.startswith(SET_BY_ACCELERATE):
            del os.environ[name]
    if launcher == "none":
        PartialState._prepare_backend, PartialState.set_device = REAL
    else:
        os.environ |= launch_variables(Path(launcher))
        PartialState._prepare_backend, PartialState.set_device = prepare_backend, set_device
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        app(arguments)
    except SystemExit as end:
        if end.code:
            raise
    except TrainingInterruptedError as interrupted:
        print(interrupted, file=sys.stderr)
        raise SystemExit(interrupted.status) from interrupted


def main(arguments: list[str]) -> None:
    """Run the commands."""
    # Main memory is pinned for a GPU that copies it.
    torch.distributed.fsdp.CPUOffloadPolicy = partial(CPUOffloadPolicy, pin_memory=False)
    trainer.faster_on_cpu = lambda *_: nullcontext()
    # Told to use the CPU, Accelerate starts no process group but that of its own CPU launch.
    torch.distributed.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    if "SIGNAL_AT_STEP" in os.environ:
        cutting = SignalAtStep(int(os.environ["SIGNAL_AT_STEP"]))
        setup._tensorboard = lambda *_: [cutting]
    while arguments:
        end = arguments.index(BETWEEN) if BETWEEN in arguments else len(arguments)
        launcher, *command = arguments[:end]
        run(launcher, command)
        arguments = arguments[end + 1 :]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
