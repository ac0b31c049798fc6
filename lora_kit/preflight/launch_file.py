"""How a training would be launched, by a configuration file of accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lora_kit.preflight.checks import sharded_in_full_precision
from lora_kit.preflight.sharing import Sharing
from lora_kit.preflight.situation import Situation
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import LoraKitError, RecipeError
from lora_kit.runtime.launch import DEFAULT_STAGE, Launch, deepspeed_stage
from lora_kit.training.arguments import micro_batch_size

KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED")
# What accelerate calls the dtypes of a recipe.
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
# Of FSDP 1 and 2, under `fsdp_reshard_after_forward`.
WHOLE_AFTER_FORWARD = ("false", "shard_grad_op", "no_shard")


@dataclass(frozen=True)
class LaunchFile:
    """What a configuration file of accelerate says.

    Attributes:
        path: of the file.
        launch: what would run if all it asks for can be had.
        machines: that share the processes evenly.
        gpus: of a machine that it names; 0 where it takes those that are there.
        use_cpu: whether it leaves GPUs alone.
        mixed_precision: `no`, `bf16`, `fp16` or `fp8`.
        by_mpi: whether `mpirun` starts the processes.
        wrapped: by which policy FSDP cuts the model into units, in capitals.
        regathered: whether FSDP gives a layer back after its forward pass.
        parallel: whether tensors or sequences are to be divided.
    """

    path: Path
    launch: Launch
    machines: int = 1
    gpus: int = 0
    use_cpu: bool = False
    mixed_precision: str = "no"
    by_mpi: bool = False
    wrapped: str = ""
    regathered: bool = True
    parallel: bool = False

    @property
    def device(self) -> torch.device:
        """What its processes compute on."""
        return torch.device("cpu" if self.use_cpu else "cuda")

    @property
    def sharing(self) -> Sharing:
        """What each of its processes holds."""
        return Sharing.of(self.launch, self.regathered)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"path": str(self.path)}


def read_launch_file(path: Path) -> LaunchFile:
    """Read a file as `accelerate launch --config_file` does.

    Raises:
        RecipeError: if accelerate cannot read it, or it asks for what is not launched here.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        file = _launch_file(path, load_config_from_file(str(path)))
    # What is not a mapping, a number or a field fails inside accelerate, each in its own way.
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise RecipeError(f"--launch {path}: accelerate cannot read it: {error}") from error
    launch = file.launch
    if launch.kind not in KINDS:
        raise RecipeError(
            f"--launch {path}: distributed_type: {launch.kind}; possible: {', '.join(KINDS)}"
        )
    if launch.processes < 1 or file.machines < 1:
        raise RecipeError(
            f"--launch {path}: num_processes: {launch.processes}, num_machines: {file.machines}; "
            "write how many processes there are, on all machines together"
        )
    return file


def _launch_file(path: Path, config: Any) -> LaunchFile:
    kind, processes = str(config.distributed_type.value), int(config.num_processes)
    fsdp = {name.removeprefix("fsdp_"): value for name, value in config.fsdp_config.items()}
    deepspeed = kind == "DEEPSPEED"
    launch = Launch(
        asked=processes,
        processes=processes,
        kind=kind,
        fsdp=kind == "FSDP",
        fsdp_version=int(fsdp.get("version", 1)) if kind == "FSDP" else 0,
        deepspeed=deepspeed,
        zero_stage=_stage(config.deepspeed_config) if deepspeed else 0,
    )
    named = str(config.gpu_ids or "all")
    return LaunchFile(
        path=path,
        launch=launch,
        machines=int(config.num_machines),
        gpus=0 if named == "all" else len(named.split(",")),
        use_cpu=bool(config.use_cpu),
        mixed_precision=str(config.mixed_precision or "no"),
        by_mpi=bool(config.mpirun_config),
        wrapped=str(fsdp.get("auto_wrap_policy", "")).upper(),
        regathered=str(fsdp.get("reshard_after_forward", True)).lower() not in WHOLE_AFTER_FORWARD,
        parallel=bool(config.parallelism_config),
    )


def _stage(config: dict[str, Any]) -> int:
    own = config.get("deepspeed_config_file")
    return deepspeed_stage(Path(own)) if own else int(config.get("zero_stage", DEFAULT_STAGE))


def require_possible(file: LaunchFile, recipe: Recipe) -> None:
    """Refuse what cannot work, before any GPU is taken for it.

    Raises:
        RecipeError: with all that is wrong.
    """
    problems = [*_of_the_file(file), *_of_both(file, recipe)]
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        raise RecipeError(
            f"--launch {file.path}: {len(problems)} {noun}\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def _of_the_file(file: LaunchFile) -> Iterator[str]:
    """What is wrong whatever the recipe."""
    launch = file.launch
    processes, here = launch.processes, launch.processes // file.machines
    if file.use_cpu and launch.kind not in ("NO", "MULTI_CPU"):
        yield (
            f"use_cpu: true with distributed_type: {launch.kind}, which takes GPUs; accelerate "
            "would run plain copies of the model. Set use_cpu: false, or distributed_type: NO"
        )
    if launch.kind in ("NO", "MULTI_CPU") and processes > 1 and not file.by_mpi:
        yield (
            f"num_processes: {processes} with distributed_type: {launch.kind}: accelerate starts "
            "one process. Set MULTI_GPU, or on CPUs use `torchrun --nproc_per_node "
            f"{processes} -m lora_kit ...` without a file"
        )
    if processes % file.machines:
        yield (
            f"num_processes: {processes} cannot be shared evenly by num_machines: "
            f"{file.machines}; write the processes of all machines together"
        )
    if file.gpus and file.gpus < here:
        yield (
            f"gpu_ids: {file.gpus} of a machine for {here} processes; name as many as there are "
            "processes, or write all"
        )
    if launch.fsdp and launch.fsdp_version != 2:
        yield (
            f"fsdp_config.fsdp_version: {launch.fsdp_version}, which flattens a layer's weights to "
            "one dtype, and adapters are float32 beside it; possible: 2"
        )
    if launch.fsdp and file.wrapped != "TRANSFORMER_BASED_WRAP":
        yield (
            f"fsdp_config.fsdp_auto_wrap_policy: {file.wrapped or 'not given'}: the whole model "
            "would be gathered at once; possible: TRANSFORMER_BASED_WRAP"
        )
    if launch.zero_stage not in (0, 1, 2, 3):
        yield f"deepspeed_config.zero_stage: {launch.zero_stage}; possible: 0, 1, 2, 3"
    if file.parallel:
        yield "parallelism_config: tensors and sequences are not divided here; leave it out"


def _of_both(file: LaunchFile, recipe: Recipe) -> Iterator[str]:
    """What is wrong with this file and this recipe together."""
    wanted = PRECISIONS.get(recipe.backbone.dtype)
    if file.mixed_precision not in ("no", wanted):
        yield (
            f"mixed_precision: {file.mixed_precision}, and the recipe says backbone.dtype: "
            f"{recipe.backbone.dtype}; write no: the recipe decides"
        )
    try:
        micro_batch_size(recipe.training, file.launch.processes, file.device)
    except LoraKitError as error:
        yield str(error)
    try:
        sharded_in_full_precision(Situation(recipe, file.launch))
    except LoraKitError as error:
        yield str(error)
