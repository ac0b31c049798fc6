"""Forecast of a training on this machine: memory from shapes, time from one micro batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.attention import expected_attention
from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import PreparedData
from lora_kit.preflight.device import DeviceMemory, find_memory
from lora_kit.preflight.gpus import FittingChange, find_fitting_change, fitting_gpus
from lora_kit.preflight.launch_file import LaunchFile
from lora_kit.preflight.libraries import libraries_memory
from lora_kit.preflight.memory import CUDA_BASE, Device, MemoryEstimate, estimate_memory
from lora_kit.preflight.merged_memory import MergedMemory, merged_memory
from lora_kit.preflight.micro_batch import largest_micro_batch
from lora_kit.preflight.step_timing import (
    Duration,
    StepTiming,
    estimate_duration,
    time_micro_batch,
)
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.processes import process_state
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.step_sizes import optimizer_steps

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class TimeEstimate:
    """Time of a training on this machine.

    Attributes:
        probe: measured micro batch.
        duration: expected duration of the complete training.
    """

    probe: StepTiming
    duration: Duration

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return {"probe": self.probe.to_dict(), "duration": self.duration.to_dict()}


@dataclass(frozen=True)
class Forecast:
    """Memory and time of a training on this machine.

    Attributes:
        memory: peak memory by purpose.
        device: memory of this machine's device, as it is now.
        advice: smallest change with which the training fits; `None` if it fits or none suffices.
        time: time of the training; `None` if memory does not suffice to run a micro batch.
        on_a_gpu: memory on a GPU; `None` if this machine's device is a GPU.
    """

    memory: MemoryEstimate
    device: DeviceMemory
    advice: FittingChange | None = None
    time: TimeEstimate | None = None
    on_a_gpu: MemoryEstimate | None = None

    @property
    def fits(self) -> bool:
        """True if the memory that is free now suffices."""
        return self.memory.total <= self.device.available

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON values."""
        gpu = self.on_a_gpu
        return {
            "memory": self.memory.to_dict(),
            "fits": self.fits,
            "advice": list(self.advice.assignments) if self.advice else [],
            "available": self.device.available,
            "device_memory": asdict(self.device),
            **(self.time.to_dict() if self.time else {"probe": None, "duration": None}),
            "on_a_gpu": gpu.to_dict() | {"gpus": list(fitting_gpus(gpu.total))} if gpu else None,
        }


def forecast(
    recipe: Recipe, backbone: Backbone, model: Any, data: PreparedData, held_out: PreparedData
) -> Forecast:
    """Estimate memory from shapes and, if it suffices, time from a micro batch that is run.

    Raises:
        TrainingError: if no gradient reaches the adapter.
    """
    state, attention = process_state(), backbone.packing_attention
    batcher = MicroBatcher.of(recipe, state.num_processes, state.device, attention)
    batch = largest_micro_batch(data, batcher)
    device: Device = "cpu" if state.device.type == "cpu" else "cuda"
    base = libraries_memory() if device == "cpu" else CUDA_BASE
    found = find_memory(state.device)
    config = backbone.model.config
    loaded = recipe.model_copy(update={"backbone": backbone.spec})
    memory = estimate_memory(loaded, config, batch, device, base)
    on_gpu = estimate_on_gpu(recipe, config, data) if device == "cpu" else None
    if memory.total > found.available:
        change = find_fitting_change(loaded, config, batch, batcher, device, base, found.available)
        return Forecast(memory, found, change, on_a_gpu=on_gpu)
    if not backbone.has_weights:
        return Forecast(memory, found, on_a_gpu=on_gpu)
    time = estimate_time(recipe, backbone, model, data, held_out)
    return Forecast(memory, found, time=time, on_a_gpu=on_gpu)


def estimate_time(
    recipe: Recipe, backbone: Backbone, model: Any, data: PreparedData, held_out: PreparedData
) -> TimeEstimate:
    """Estimate the time of a training from a micro batch that is run.

    Raises:
        TrainingError: if no gradient reaches the adapter.
    """
    state, spec = process_state(), recipe.training
    attention = backbone.packing_attention
    batcher = MicroBatcher.of(recipe, state.num_processes, state.device, attention)
    steps = optimizer_steps(data.size, spec)
    measured = time_micro_batch(model, backbone, data, batcher, spec.gradient_checkpointing)
    duration = estimate_duration(
        measured, data.lengths, held_out.lengths, spec, batcher, state.num_processes, steps
    )
    return TimeEstimate(measured, duration)


def estimate_on_gpu(recipe: Recipe, config: PretrainedConfig, data: PreparedData) -> MemoryEstimate:
    """Estimate the memory of the recipe's training on one GPU, from a machine without GPUs.

    On a GPU, a forward pass has the complete batch unless the recipe limits it.

    Raises:
        LoraKitError: as in `estimate_memory`.
    """
    recipe = as_on_gpu(recipe, config)
    batcher = MicroBatcher.of(recipe, 1, torch.device("cuda"), recipe.backbone.attention)
    return estimate_memory(recipe, config, largest_micro_batch(data, batcher), "cuda", CUDA_BASE)


def estimate_per_process(
    recipe: Recipe, config: PretrainedConfig, data: PreparedData, file: LaunchFile
) -> MemoryEstimate:
    """Estimate the memory of the recipe's training in each process that a launch file starts.

    Raises:
        LoraKitError: as in `estimate_memory`, or if an optimizer step has fewer examples than
            there are processes.
    """
    on_gpus = file.device.type == "cuda"
    recipe = as_on_gpu(recipe, config) if on_gpus else recipe
    batcher = MicroBatcher.of(recipe, file.launch.processes, file.device, recipe.backbone.attention)
    batch = largest_micro_batch(data, batcher)
    base = CUDA_BASE if on_gpus else libraries_memory()
    device: Device = "cuda" if on_gpus else "cpu"
    return estimate_memory(recipe, config, batch, device, base, file.sharding)


def estimate_merged(
    recipe: Recipe, parameters: int, file: LaunchFile | None = None
) -> MergedMemory:
    """Estimate the memory of the evaluation of a recipe's merged model.

    Args:
        recipe: recipe of the training.
        parameters: number of parameters of the backbone.
        file: launch file of the planned run; by default this machine's device counts.
    """
    on_gpu = (file.device if file else process_state().device).type == "cuda"
    if file and on_gpu:
        recipe = with_gpu_dtype(recipe)
    base = CUDA_BASE if on_gpu else libraries_memory()
    return merged_memory(recipe, parameters, "cuda" if on_gpu else "cpu", base)


def with_gpu_dtype(recipe: Recipe) -> Recipe:
    """Return the recipe with dtype `auto` resolved to bfloat16, which has the size of float16."""
    if recipe.backbone.dtype != "auto":
        return recipe
    backbone = recipe.backbone.model_copy(update={"dtype": "bfloat16"})
    return recipe.model_copy(update={"backbone": backbone})


def as_on_gpu(recipe: Recipe, config: PretrainedConfig) -> Recipe:
    """Return the recipe with dtype and attention `auto` resolved as on a GPU."""
    recipe = with_gpu_dtype(recipe)
    attention = expected_attention(recipe.backbone, config, "cuda")
    backbone = recipe.backbone.model_copy(update={"attention": attention})
    return recipe.model_copy(update={"backbone": backbone})
