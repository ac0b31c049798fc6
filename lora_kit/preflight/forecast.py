"""What a training takes on this machine: memory from shapes, time from a try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import PreparedData
from lora_kit.preflight.cards import Advice, advice, fitting_cards
from lora_kit.preflight.device import device_memory
from lora_kit.preflight.launch_file import LaunchFile
from lora_kit.preflight.libraries import libraries_memory
from lora_kit.preflight.memory import CUDA_BASE, Device, MemoryEstimate, estimate
from lora_kit.preflight.micro_batch import largest_micro_batch
from lora_kit.preflight.probe import Duration, Probe, duration, probe
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.processes import process_state
from lora_kit.training.arguments import optimizer_steps
from lora_kit.training.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Timing:
    """How long the training takes on this machine.

    Attributes:
        probe: the micro batch that was run.
        duration: of all the training.
    """

    probe: Probe
    duration: Duration

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"probe": self.probe.to_dict(), "duration": self.duration.to_dict()}


@dataclass(frozen=True)
class Forecast:
    """What the training takes on this machine.

    Attributes:
        memory: at most, by what it is for.
        advice: the smallest change with which it fits, where it does not.
        available: bytes that this machine's device has.
        probe: the micro batch that was run; `None` where memory would not be enough for it.
        duration: of all the training; `None` without a probe.
        on_a_gpu: what it would take there; `None` where this machine's device is one.
    """

    memory: MemoryEstimate
    advice: Advice | None
    available: int
    probe: Probe | None = None
    duration: Duration | None = None
    on_a_gpu: MemoryEstimate | None = None

    @property
    def fits(self) -> bool:
        """Whether there is as much memory as the training takes."""
        return self.memory.total <= self.available

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "memory": self.memory.to_dict(),
            "fits": self.fits,
            "advice": list(self.advice.assignments) if self.advice else [],
            "available": self.available,
            "probe": self.probe.to_dict() if self.probe else None,
            "duration": self.duration.to_dict() if self.duration else None,
            "on_a_gpu": self._on_a_gpu(),
        }

    def _on_a_gpu(self) -> dict[str, Any] | None:
        found = self.on_a_gpu
        if found is None:
            return None
        return found.to_dict() | {"cards": list(fitting_cards(found.total))}


def forecast(
    recipe: Recipe, backbone: Backbone, model: Any, data: PreparedData, held_out: PreparedData
) -> Forecast:
    """Memory from shapes; time, where that is enough, from a micro batch that is run.

    Raises:
        TrainingError: if no gradient reaches the adapter.
    """
    state = process_state()
    cutting = MicroBatcher.of(recipe, state.num_processes, state.device)
    batch = largest_micro_batch(data, cutting)
    device: Device = "cpu" if state.device.type == "cpu" else "cuda"
    base = libraries_memory() if device == "cpu" else CUDA_BASE
    available = device_memory(state.device)
    config = backbone.model.config
    memory = estimate(recipe, config, batch, device, base)
    elsewhere = estimate_on_a_gpu(recipe, config, data) if device == "cpu" else None
    if memory.total > available:
        change = advice(recipe, config, batch, cutting, device, base, available)
        return Forecast(memory, change, available, on_a_gpu=elsewhere)
    timed = timing(recipe, backbone, model, data, held_out)
    return Forecast(memory, None, available, timed.probe, timed.duration, elsewhere)


def timing(
    recipe: Recipe, backbone: Backbone, model: Any, data: PreparedData, held_out: PreparedData
) -> Timing:
    """Time from a micro batch that is run.

    Raises:
        TrainingError: if no gradient reaches the adapter.
    """
    state, spec = process_state(), recipe.training
    cutting = MicroBatcher.of(recipe, state.num_processes, state.device)
    steps = optimizer_steps(data.size, spec)
    probed = probe(model, backbone, data, cutting, spec.gradient_checkpointing)
    taken = duration(
        probed, data.lengths, held_out.lengths, spec, cutting, state.num_processes, steps
    )
    return Timing(probed, taken)


def estimate_on_a_gpu(
    recipe: Recipe, config: PretrainedConfig, data: PreparedData
) -> MemoryEstimate:
    """What the recipe's training takes on one GPU, said on a machine without any.

    There a forward pass has the whole batch unless the recipe says otherwise.

    Raises:
        LoraKitError: as `estimate` does.
    """
    recipe = as_on_a_gpu(recipe)
    cutting = MicroBatcher.of(recipe, 1, torch.device("cuda"))
    return estimate(recipe, config, largest_micro_batch(data, cutting), "cuda", CUDA_BASE)


def estimate_of_a_rank(
    recipe: Recipe, config: PretrainedConfig, data: PreparedData, file: LaunchFile
) -> MemoryEstimate:
    """What the recipe's training takes in each process that a configuration file would start.

    Raises:
        LoraKitError: as `estimate` does, or if there are more processes than examples of a step.
    """
    on_gpus = file.device.type == "cuda"
    recipe = as_on_a_gpu(recipe) if on_gpus else recipe
    cutting = MicroBatcher.of(recipe, file.launch.processes, file.device)
    batch = largest_micro_batch(data, cutting)
    base = CUDA_BASE if on_gpus else libraries_memory()
    return estimate(recipe, config, batch, "cuda" if on_gpus else "cpu", base, file.sharing)


def as_on_a_gpu(recipe: Recipe) -> Recipe:
    """The recipe where `auto` is bfloat16, which takes as much memory as float16 does."""
    if recipe.backbone.dtype != "auto":
        return recipe
    backbone = recipe.backbone.model_copy(update={"dtype": "bfloat16"})
    return recipe.model_copy(update={"backbone": backbone})
