"""What a launcher asked for, by the environment variables it sets, beside what came of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.processes import process_state

# As torchrun, Intel MPI, Open MPI and MVAPICH call the number of processes.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SEVERAL = 2
# ZeRO 1 divides the optimizer's state, 2 the gradients too, 3 the weights as well (Rajbhandari et
# al. 2020, arXiv:1910.02054, section 5).
WEIGHTS_STAGE = 3
# What accelerate takes where its configuration names none.
DEFAULT_STAGE = 2
# Less than this share of the weights in shards is a backbone that every process holds whole.
SHARDED = 0.5


@dataclass(frozen=True)
class Launch:
    """What was asked for and what runs.

    Attributes:
        asked: processes; 2 where only that they are several can be told.
        fsdp: whether sharding by FSDP was asked for.
        fsdp_version: 1 or 2, 0 without it.
        deepspeed: whether it was asked for.
        zero_stage: of DeepSpeed, 0 without it.
        processes: that run together.
        kind: of distribution, as accelerate calls it (`NO`, `MULTI_CPU`, `MULTI_GPU`, ...).
    """

    asked: int = 1
    fsdp: bool = False
    deepspeed: bool = False
    zero_stage: int = 0
    processes: int = 1
    kind: str = "NO"
    fsdp_version: int = 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share of the weights, and no process all of them."""
        return self.fsdp or self.zero_stage == WEIGHTS_STAGE


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
    fsdp = _is_set(environment, "ACCELERATE_USE_FSDP")
    return Launch(
        asked=max(sizes, default=SEVERAL if met else 1),
        fsdp=fsdp,
        fsdp_version=int(environment.get("FSDP_VERSION", "1")) if fsdp else 0,
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
    return deepspeed_stage(Path(path)) if path else DEFAULT_STAGE


def deepspeed_stage(path: Path) -> int:
    """The ZeRO stage in DeepSpeed's own configuration file.

    Raises:
        TrainingError: if it cannot be read.
    """
    config = read_json(path, TrainingError)
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
    if launch.fsdp_version == 1:
        raise TrainingError(
            "FSDP 1 flattens the weights that it shards, so that no adapter could be told from "
            "them in a checkpoint. Set fsdp_version: 2, as accelerate_configs/fsdp2.yaml does"
        )
    if launch.deepspeed and launch.kind != "DEEPSPEED":
        raise TrainingError(
            f"the launcher was asked for DeepSpeed, and accelerate runs {launch.kind}. DeepSpeed "
            "takes GPUs; without them choose a configuration without it"
        )


def why_not_sharded(launch: Launch, quantization: str) -> str:
    """The reason why quantized weights are not sharded.

    FSDP 2 shards 4-bit weights that are stored as numbers of the dtype that is computed in.

    On a CPU they come back as they were (torch 2.13, bitsandbytes 0.50, in a group of two). On a
    GPU they are copied by a kernel that computes, which makes one NaN of every pattern of bits that
    reads as one, about a weight in a thousand. Stored as integers, accelerate leaves them out.
    """
    if quantization == "int8" or not launch.fsdp:
        return "packed weights cannot be sharded and gathered again"
    return (
        "stored as integers they stay whole on each GPU, and stored as numbers some are changed "
        "without an error when a GPU gathers them (bitsandbytes issue 1945)"
    )


def require_sharded(launch: Launch, model: torch.nn.Module) -> None:
    """Refuse to train a model that is whole on every process though it was to be sharded.

    Args:
        launch: what was asked for.
        model: as the trainer wrapped it.

    Raises:
        TrainingError: if FSDP was asked for and most of the weights are in no shard, or ZeRO-3 and
            no parameter is DeepSpeed's.
    """
    parameters = list(model.parameters())
    if launch.zero_stage == WEIGHTS_STAGE and not any(hasattr(p, "ds_id") for p in parameters):
        raise TrainingError(
            "the launcher was asked for ZeRO-3, and DeepSpeed manages no parameter of the model: "
            "every process holds all of it. Launch with `--config_file accelerate_configs/"
            "deepspeed-zero3.yaml` (zero_stage: 3), and let accelerate prepare the model"
        )
    if launch.fsdp and (share := _sharded_share(model)) < SHARDED:
        raise TrainingError(
            f"the launcher was asked for FSDP, and {share:.0%} of the weights are in shards: every "
            "process holds the others whole. Set fsdp_version: 2 and fsdp_auto_wrap_policy: "
            "TRANSFORMER_BASED_WRAP under fsdp_config, as accelerate_configs/fsdp2.yaml does"
        )


def _sharded_share(model: torch.nn.Module) -> float:
    """Share of a model's weights that processes hold in shards.

    FSDP 2 makes each parameter a DTensor with a `Shard` (`fully_shard`); FSDP 1 flattens the
    parameters of a module that it wraps. Accelerate 1.15 leaves weights out of FSDP 2 that are
    stored as integers, such as those in 4 bits.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    if isinstance(model, FullyShardedDataParallel):
        return 1.0
    sharded = sum(
        p.numel()
        for p in parameters
        if isinstance(p, DTensor) and any(placement.is_shard() for placement in p.placements)
    )
    return sharded / max(sum(p.numel() for p in parameters), 1)


def require_whole(command: str) -> None:
    """Refuse what takes the whole model where each process would hold a share of it.

    Raises:
        TrainingError: under FSDP and ZeRO-3.
    """
    if current_launch().sharded:
        raise TrainingError(
            f"`lora-kit {command}` under FSDP or ZeRO-3: no process would hold the whole model. "
            "Launch `lora-kit train` so, then `lora-kit evaluate` and `lora-kit merge` without "
            "sharding"
        )
