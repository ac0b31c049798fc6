"""Launch of a training as described by a configuration file of accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lora_kit.preflight.checks import launch_problems
from lora_kit.preflight.sharding import Sharding
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import LoraKitError, RecipeError
from lora_kit.runtime.launch import DEFAULT_ZERO_STAGE, Launch, deepspeed_stage
from lora_kit.training.step_sizes import micro_batch_size

KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED")
# Accelerate's names for the dtypes of a recipe.
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
# Values of `fsdp_reshard_after_forward` in FSDP 1 and 2 that keep layers gathered.
GATHERED_AFTER_FORWARD = ("false", "shard_grad_op", "no_shard")


@dataclass(frozen=True)
class LaunchFile:
    """Settings of a configuration file of accelerate.

    Attributes:
        path: path of the file.
        launch: launch that the file requests.
        machines: number of machines, which share the processes evenly.
        gpus: number of GPUs per machine in `gpu_ids`; 0 for all.
        use_cpu: true if GPUs are not used.
        mixed_precision: `no`, `bf16`, `fp16` or `fp8`.
        mpirun: true if `mpirun` starts the processes.
        auto_wrap_policy: FSDP's auto wrap policy, in capitals.
        reshard_after_forward: true if FSDP shards a layer again after its forward pass.
        offloaded: true if FSDP keeps its shards in main memory.
        parallel: true if tensor, context or sequence parallelism is requested.
        shard_size: processes over which the weights are sharded, if the file says so; else 0.
    """

    path: Path
    launch: Launch
    machines: int = 1
    gpus: int = 0
    use_cpu: bool = False
    mixed_precision: str = "no"
    mpirun: bool = False
    auto_wrap_policy: str = ""
    reshard_after_forward: bool = True
    offloaded: bool = False
    parallel: bool = False
    shard_size: int = 0

    @property
    def device(self) -> torch.device:
        """Device of the processes."""
        return torch.device("cpu" if self.use_cpu else "cuda")

    @property
    def sharding(self) -> Sharding:
        """Sharding of the training over the processes."""
        return Sharding.of(self.launch, self.reshard_after_forward, self.offloaded)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"path": str(self.path)}


def read_launch_file(path: Path) -> LaunchFile:
    """Read a file like `accelerate launch --config_file`.

    Raises:
        RecipeError: if accelerate cannot read the file, or it requests an unsupported launch.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        file = _launch_file(path, load_config_from_file(str(path)))
    # Accelerate does not validate: wrong types and unknown fields raise various exceptions.
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise RecipeError(
            f"--launch {path}: accelerate cannot read it (got {type(error).__name__}: {error}). "
            "Fix: start from a file of accelerate_configs/"
        ) from error
    launch = file.launch
    if launch.kind not in KINDS:
        raise RecipeError(
            f"--launch {path}: distributed_type: not supported (got {launch.kind}). Fix: use one "
            f"of {', '.join(KINDS)}"
        )
    if launch.processes < 1 or file.machines < 1:
        raise RecipeError(
            f"--launch {path}: num_processes and num_machines must be at least 1 (got "
            f"num_processes: {launch.processes}, num_machines: {file.machines}). Fix: set "
            "num_processes to the total number of processes on all machines"
        )
    return file


def _launch_file(path: Path, config: Any) -> LaunchFile:
    kind, processes = str(config.distributed_type.value), int(config.num_processes)
    fsdp = {name.removeprefix("fsdp_"): value for name, value in config.fsdp_config.items()}
    parallel = {
        name.removeprefix("parallelism_config_"): value
        for name, value in config.parallelism_config.items()
    }
    deepspeed = kind == "DEEPSPEED"
    launch = Launch(
        asked=processes,
        processes=processes,
        kind=kind,
        fsdp=kind == "FSDP",
        fsdp_version=int(fsdp.get("version", 1)) if kind == "FSDP" else 0,
        deepspeed=deepspeed,
        zero_stage=_zero_stage(config.deepspeed_config) if deepspeed else 0,
        replicas=int(parallel.get("dp_replicate_size", 1)),
    )
    gpu_ids = str(config.gpu_ids or "all")
    reshard = str(fsdp.get("reshard_after_forward", True)).lower()
    return LaunchFile(
        path=path,
        launch=launch,
        machines=int(config.num_machines),
        gpus=0 if gpu_ids == "all" else len(gpu_ids.split(",")),
        use_cpu=bool(config.use_cpu),
        mixed_precision=str(config.mixed_precision or "no"),
        mpirun=bool(config.mpirun_config),
        auto_wrap_policy=str(fsdp.get("auto_wrap_policy", "")).upper(),
        reshard_after_forward=reshard not in GATHERED_AFTER_FORWARD,
        offloaded=str(fsdp.get("offload_params", False)).lower() == "true",
        parallel=any(int(parallel.get(f"{name}_size", 1)) > 1 for name in ("tp", "cp", "sp")),
        # Accelerate's default, with which FSDP 2 has no processes to shard over.
        shard_size=int(parallel.get("dp_shard_size", 1)) if parallel else 0,
    )


def _zero_stage(config: dict[str, Any]) -> int:
    own = config.get("deepspeed_config_file")
    return deepspeed_stage(Path(own)) if own else int(config.get("zero_stage", DEFAULT_ZERO_STAGE))


def refuse_impossible_launch(file: LaunchFile, recipe: Recipe) -> None:
    """Refuse a launch file that cannot work, before any GPU is allocated.

    Raises:
        RecipeError: with all problems of the file and of its combination with the recipe.
    """
    problems = [*_file_problems(file), *_recipe_problems(file, recipe)]
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        raise RecipeError(
            f"--launch {file.path}: {len(problems)} {noun}\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def _file_problems(file: LaunchFile) -> Iterator[str]:
    """Yield the problems that do not depend on the recipe."""
    launch = file.launch
    processes, per_machine = launch.processes, launch.processes // file.machines
    if file.use_cpu and launch.kind not in ("NO", "MULTI_CPU"):
        yield (
            f"use_cpu: true with distributed_type: {launch.kind}, which needs GPUs: accelerate "
            "would run unsharded copies of the model. Fix: set use_cpu: false, or "
            "distributed_type: NO"
        )
    if launch.kind in ("NO", "MULTI_CPU") and processes > 1 and not file.mpirun:
        yield (
            f"num_processes: {processes} with distributed_type: {launch.kind}: accelerate starts "
            "one process. Fix: set distributed_type: MULTI_GPU, or on CPUs start `torchrun "
            f"--nproc_per_node {processes} -m lora_kit ...` without a file"
        )
    if processes % file.machines:
        yield (
            f"num_processes: {processes} is not divisible by num_machines: {file.machines}. Fix: "
            "set num_processes to the total number of processes on all machines"
        )
    if file.gpus and file.gpus < per_machine:
        yield (
            f"gpu_ids: fewer GPUs than processes per machine (got {file.gpus} GPUs for "
            f"{per_machine} processes). Fix: name one GPU per process, or set gpu_ids: all"
        )
    if launch.fsdp and launch.fsdp_version != 2:
        yield (
            "fsdp_config.fsdp_version: FSDP 1 flattens a layer's weights to one dtype, but float32 "
            f"adapters differ from the backbone's (got {launch.fsdp_version}). Fix: set it to 2"
        )
    if launch.fsdp and file.auto_wrap_policy != "TRANSFORMER_BASED_WRAP":
        yield (
            "fsdp_config.fsdp_auto_wrap_policy: without wrapped layers, the complete model is "
            f"gathered at once (got {file.auto_wrap_policy or 'no policy'}). Fix: set it to "
            "TRANSFORMER_BASED_WRAP"
        )
    if launch.zero_stage not in (0, 1, 2, 3):
        yield (
            f"deepspeed_config.zero_stage: unknown stage (got {launch.zero_stage}). Fix: set 0, 1, "
            "2 or 3"
        )
    yield from _parallelism_problems(file)


def _parallelism_problems(file: LaunchFile) -> Iterator[str]:
    """Yield the problems of `parallelism_config`."""
    launch, sizes = file.launch, (file.launch.replicas, file.shard_size)
    if file.parallel:
        yield (
            "parallelism_config: tensor, context and sequence parallelism are not supported. Fix: "
            "leave their sizes out"
        )
    if file.shard_size and not launch.fsdp:
        yield (
            "parallelism_config: replicas of shards need FSDP (got distributed_type: "
            f"{launch.kind}). Fix: leave it out, or start from accelerate_configs/hsdp.yaml"
        )
    elif file.shard_size and (sizes[1] < 2 or sizes[0] * sizes[1] != launch.processes):
        yield (
            "parallelism_config: dp_replicate_size x dp_shard_size must be num_processes, and "
            f"dp_shard_size at least 2 (got {sizes[0]} x {sizes[1]} for {launch.processes} "
            "processes). Fix: set dp_shard_size to the GPUs of a machine, dp_replicate_size to the "
            "number of machines"
        )


def _recipe_problems(file: LaunchFile, recipe: Recipe) -> Iterator[str]:
    """Yield the problems of the file in combination with the recipe."""
    precision = PRECISIONS.get(recipe.backbone.dtype)
    if file.mixed_precision not in ("no", precision):
        yield (
            f"mixed_precision: contradicts the recipe (got {file.mixed_precision} with "
            f"backbone.dtype: {recipe.backbone.dtype}). Fix: set mixed_precision: no; the recipe "
            "determines the dtype"
        )
    try:
        micro_batch_size(recipe.training, file.launch.processes, file.device)
    except LoraKitError as error:
        yield str(error)
    yield from launch_problems(recipe, file.launch)
