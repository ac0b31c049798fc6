"""lora-kit in processes on CPUs that DeepSpeed takes for GPUs.

With INTERRUPT=N the last process receives SIGUSR1 in step N; with DIE=N it is killed there.
"""

import os
import signal
from typing import Any

import deepspeed
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from lora_kit.cli import main
from lora_kit.training.steps import StepTrainer

started, step = PartialState.__init__, StepTrainer.training_step


def begin(self: PartialState, cpu: bool = False, **rest: Any) -> None:
    started(self, False, **rest)


def on_cpu(self: PartialState) -> None:
    self.device = torch.device("cpu")


def step_with_signal(self: StepTrainer, *arguments: Any) -> torch.Tensor:
    is_last = self.args.process_index == self.args.world_size - 1
    for name, number in (("INTERRUPT", signal.SIGUSR1), ("DIE", signal.SIGKILL)):
        if is_last and os.environ.get(name) == str(self.state.global_step + 1):
            os.kill(os.getpid(), number)
    return step(self, *arguments)


if __name__ == "__main__":
    # It would be compiled for minutes, and leave a lock behind if interrupted.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState.__init__ = begin
    PartialState.set_device = on_cpu
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    StepTrainer.training_step = step_with_signal  # type: ignore[method-assign]
    main()
