"""Requested launch (environment variables of the launcher) compared with the running one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.launcher import USE_CPU, WORLD_SIZES, is_flag_set, launcher_numbers
from lora_kit.runtime.processes import process_state

MULTIPLE = 2
# ZeRO 1 shards the optimizer's state, 2 also the gradients, 3 also the weights (Rajbhandari et al.
# 2020, arXiv:1910.02054, section 5).
ZERO_WEIGHTS_STAGE = 3
# Accelerate's default.
DEFAULT_ZERO_STAGE = 2
# With a smaller share of its weights in shards, every process holds a full copy of the backbone.
MIN_SHARDED_SHARE = 0.5


@dataclass(frozen=True)
class Launch:
    """Requested and running configuration of a launch.

    Attributes:
        asked: requested number of processes; 2 if the launcher only reveals that it is above 1.
        fsdp: true if FSDP was requested.
        deepspeed: true if DeepSpeed was requested.
        zero_stage: DeepSpeed's ZeRO stage; 0 without DeepSpeed.
        processes: number of processes that run together.
        kind: distributed type as named by accelerate (`NO`, `MULTI_CPU`, `MULTI_GPU`, ...).
        fsdp_version: 1 or 2; 0 without FSDP.
        replicas: number of groups of processes that each hold all shards (hybrid sharding, HSDP);
            1 if the shards are spread over all processes.
    """

    asked: int = 1
    fsdp: bool = False
    deepspeed: bool = False
    zero_stage: int = 0
    processes: int = 1
    kind: str = "NO"
    fsdp_version: int = 0
    replicas: int = 1

    @property
    def sharded(self) -> bool:
        """True if each process holds only a share of the weights."""
        return self.fsdp or self.zero_stage == ZERO_WEIGHTS_STAGE

    @property
    def partitioned(self) -> bool:
        """True if FSDP or DeepSpeed owns weights, gradients or the optimizer's state."""
        return self.fsdp or self.deepspeed


def current_launch() -> Launch:
    """Return the launch that this process belongs to."""
    state = process_state()
    return read_launch(os.environ, state.num_processes, str(state.distributed_type.value))


def read_launch(environment: Mapping[str, str], processes: int, kind: str) -> Launch:
    """Read the requested launch from environment variables.

    Args:
        environment: environment variables of the process.
        processes: number of processes that run together.
        kind: distributed type as named by accelerate.

    Raises:
        TrainingError: if DeepSpeed's own configuration cannot be read.
    """
    # `accelerate launch --cpu --num_processes 2` starts one process and sets a rendezvous address.
    rendezvous = USE_CPU in environment and "MASTER_ADDR" in environment
    deepspeed = is_flag_set(environment, "ACCELERATE_USE_DEEPSPEED")
    fsdp = is_flag_set(environment, "ACCELERATE_USE_FSDP")
    return Launch(
        asked=max(
            launcher_numbers(environment, WORLD_SIZES), default=MULTIPLE if rendezvous else 1
        ),
        fsdp=fsdp,
        fsdp_version=int(environment.get("FSDP_VERSION", "1")) if fsdp else 0,
        deepspeed=deepspeed,
        zero_stage=_zero_stage(environment) if deepspeed else 0,
        processes=processes,
        kind=kind,
        replicas=_replicas(environment) if fsdp else 1,
    )


def _replicas(environment: Mapping[str, str]) -> int:
    if not is_flag_set(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        return 1
    return int(environment.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "1"))


def _zero_stage(environment: Mapping[str, str]) -> int:
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    if stage.isdigit():
        return int(stage)
    path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    return deepspeed_stage(Path(path)) if path else DEFAULT_ZERO_STAGE


def deepspeed_stage(path: Path) -> int:
    """Return the ZeRO stage in DeepSpeed's own configuration file.

    Raises:
        TrainingError: if the file cannot be read.
    """
    config = read_json(path, TrainingError)
    return int(config.get("zero_optimization", {}).get("stage", 0))


def require_requested_launch(launch: Launch) -> None:
    """Refuse to run in another configuration than the launcher requested.

    Accelerate 1.15 falls back silently: `accelerate launch --cpu --num_processes 2` runs one
    process, and an FSDP configuration with `use_cpu: true` runs as plain data parallelism.

    Raises:
        TrainingError: if fewer processes run, or with another distributed type.
    """
    if launch.asked != launch.processes:
        requested = "several" if launch.asked == MULTIPLE else launch.asked
        raise TrainingError(
            f"num_processes: the launcher requested {requested} processes (running: "
            f"{launch.processes}). Fix: on CPUs start them with `torchrun --nproc_per_node N -m "
            "lora_kit ...`; for a single process leave out --num_processes and MASTER_ADDR"
        )
    if launch.fsdp and launch.kind in ("NO", "MULTI_CPU"):
        raise TrainingError(
            f"distributed_type: the launcher requested FSDP, but accelerate runs {launch.kind}, "
            "which keeps a full copy of the model on every process. Fix: launch on GPUs, or "
            "choose a configuration without FSDP"
        )
    if launch.fsdp_version == 1:
        raise TrainingError(
            "fsdp_version: FSDP 1 flattens the weights that it shards, so a checkpoint cannot "
            "separate the adapter from them (got 1). Fix: set fsdp_version: 2, as in "
            "accelerate_configs/fsdp2.yaml"
        )
    if launch.deepspeed and launch.kind != "DEEPSPEED":
        raise TrainingError(
            f"distributed_type: the launcher requested DeepSpeed, but accelerate runs "
            f"{launch.kind}. Fix: launch on GPUs, or choose a configuration without DeepSpeed"
        )


def require_sharded(launch: Launch, model: torch.nn.Module) -> None:
    """Refuse to train a full copy of the model on every process when sharding was requested.

    Args:
        launch: requested launch.
        model: model as wrapped by the trainer.

    Raises:
        TrainingError: if FSDP was requested but most of the weights are in no shard, or ZeRO-3 was
            requested but DeepSpeed manages no parameter.
    """
    parameters = list(model.parameters())
    if launch.zero_stage == ZERO_WEIGHTS_STAGE and not any(hasattr(p, "ds_id") for p in parameters):
        raise TrainingError(
            "zero_stage: the launcher requested ZeRO-3, but DeepSpeed manages no parameter of the "
            "model, so every process holds a full copy. Fix: launch with `--config_file "
            "accelerate_configs/deepspeed-zero3.yaml` (zero_stage: 3) and let accelerate prepare "
            "the model"
        )
    if launch.fsdp and (share := _sharded_share(model)) < MIN_SHARDED_SHARE:
        raise TrainingError(
            f"fsdp_config: the launcher requested FSDP, but only {share:.0%} of the weights are in "
            "shards; every process holds a full copy of the others. Fix: set fsdp_version: 2 and "
            "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, as in accelerate_configs/fsdp2.yaml"
        )


def _sharded_share(model: torch.nn.Module) -> float:
    """Return the share of a model's weights that are in shards, 0 to 1.

    FSDP 2 makes each parameter a DTensor with a `Shard` (`fully_shard`); FSDP 1 flattens the
    parameters of a module that it wraps. Accelerate 1.15 excludes weights stored as integers from
    FSDP 2, such as 4-bit ones that `training.sharded_4bit` has not sharded before.
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


def needs_one_process(gpus: int) -> bool:
    """Return true if stages after the training have to `continue_alone`.

    Under FSDP and ZeRO-3 each process holds a share of the model only; and one process needs all
    GPUs over which it spreads the model. On CPUs nothing is spread.

    Args:
        gpus: number of these GPUs.
    """
    state = process_state()
    several = state.num_processes > 1 and state.device.type == "cuda"
    return current_launch().sharded or (gpus > 1 and several)


def require_unsharded_launch(command: str) -> None:
    """Refuse a command that needs the full model when each process holds only a share of it.

    Raises:
        TrainingError: under FSDP and ZeRO-3.
    """
    if current_launch().sharded:
        raise TrainingError(
            f"lora-kit {command}: needs the full model, which no process holds under FSDP or "
            "ZeRO-3. Fix: start it without a launcher"
        )
