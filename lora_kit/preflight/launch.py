"""What a launcher asked for, by the environment variables it sets, beside what came of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_kit.errors import TrainingError
from lora_kit.files import read_json
from lora_kit.processes import process_state

# As torchrun, Intel MPI, Open MPI and MVAPICH call the number of processes.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SEVERAL = 2


@dataclass(frozen=True)
class Launch:
    """What was asked for and what runs.

    Attributes:
        asked: processes; 2 where only that they are several can be told.
        fsdp: whether sharding by FSDP was asked for.
        zero_stage: of DeepSpeed, 0 without it.
        deepspeed: whether it was asked for.
        processes: that run together.
        kind: of distribution, as accelerate calls it (`NO`, `MULTI_CPU`, `MULTI_GPU`, ...).
    """

    asked: int = 1
    fsdp: bool = False
    deepspeed: bool = False
    zero_stage: int = 0
    processes: int = 1
    kind: str = "NO"


def current_launch() -> Launch:
    """This process's."""
    state = process_state()
    return read_launch(os.environ, state.num_processes, str(state.distributed_type.value))


def read_launch(environment: Mapping[str, str], processes: int, kind: str) -> Launch:
    """What an environment asks for.

    Args:
        environment: of the process.
        processes: that run together.
        kind: of distribution, as accelerate calls it.

    Raises:
        TrainingError: if DeepSpeed's own configuration cannot be read.
    """
    sizes = [int(environment[name]) for name in SIZES if environment.get(name, "").isdigit()]
    # `accelerate launch --cpu --num_processes 2` starts one process and sets an address to meet at.
    met = "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment
    deepspeed = _is_set(environment, "ACCELERATE_USE_DEEPSPEED")
    return Launch(
        asked=max(sizes, default=SEVERAL if met else 1),
        fsdp=_is_set(environment, "ACCELERATE_USE_FSDP"),
        deepspeed=deepspeed,
        zero_stage=_zero_stage(environment) if deepspeed else 0,
        processes=processes,
        kind=kind,
    )


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")


def _zero_stage(environment: Mapping[str, str]) -> int:
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    if stage.isdigit():
        return int(stage)
    path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    config = read_json(Path(path), TrainingError) if path else {}
    return int(config.get("zero_optimization", {}).get("stage", 0))


def require_what_was_asked(launch: Launch) -> None:
    """Refuse to run as something else than what the launcher was told.

    Accelerate 1.15 does so without a word: `accelerate launch --cpu --num_processes 2` runs one
    process, and an FSDP configuration with `use_cpu: true` runs as plain data parallelism.

    Raises:
        TrainingError: if fewer processes run, or in another kind of distribution.
    """
    if launch.asked != launch.processes:
        raise TrainingError(
            f"the launcher was asked for {'several' if launch.asked == SEVERAL else launch.asked} "
            f"processes, and {launch.processes} runs. On CPUs start them with `torchrun "
            "--nproc_per_node N -m lora_kit ...`; for one process leave --num_processes and "
            "MASTER_ADDR out"
        )
    if launch.fsdp and launch.kind in ("NO", "MULTI_CPU"):
        raise TrainingError(
            f"the launcher was asked for FSDP, and accelerate runs {launch.kind}, where every "
            "process holds the whole model. FSDP takes GPUs; without them choose a configuration "
            "without it"
        )
    if launch.deepspeed and launch.kind != "DEEPSPEED":
        raise TrainingError(
            f"the launcher was asked for DeepSpeed, and accelerate runs {launch.kind}. DeepSpeed "
            "takes GPUs; without them choose a configuration without it"
        )
