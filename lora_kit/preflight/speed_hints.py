"""Hints of settings with which the same training takes less time, if memory allows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.attention import FLASH, WITH_LENGTHS, flash_attention_problem
from lora_kit.backbone.varlen_support import supports_flash_attention
from lora_kit.data.batches import allows_packing
from lora_kit.preflight.forecast import Forecast
from lora_kit.preflight.gpus import fitting_gpus
from lora_kit.preflight.guidance import Hint
from lora_kit.preflight.launch_file import LaunchFile
from lora_kit.preflight.memory import MemoryEstimate, estimate_memory
from lora_kit.preflight.sharding import Sharding
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.processes import process_state
from lora_kit.training.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GB = 1e9
# Share of padding from which packing saves more than its attention costs: with a mask, all pairs of
# tokens of a pack are computed, a fifth of a pass of 4,096 tokens.
MUCH_PADDING = 0.25


def speed_hints(
    recipe: Recipe,
    config: PretrainedConfig,
    lengths: NDArray[np.int32],
    machine: Forecast | None,
    per_process: MemoryEstimate | None,
    file: LaunchFile | None,
) -> Iterator[Hint]:
    """Yield the hints for a training on this machine, or as a launch file starts it.

    Args:
        recipe: recipe of the training, its dtype and attention resolved.
        config: configuration of the backbone.
        lengths: tokens of each training example, (examples,) int32.
        machine: forecast on this machine; `None` with a launch file, or if memory is not estimated.
        per_process: memory of each process that the launch file starts; `None` likewise.
        file: launch file of the planned run.

    Raises:
        TrainingError: if there are more processes than examples in a step.
    """
    if file and per_process:
        yield from checkpointing_hints(recipe, config, per_process, None, file.sharding)
        yield from packing_hints(recipe, lengths, file.launch.processes, file.device)
    elif machine:
        state = process_state()
        yield from checkpointing_hints(recipe, config, machine.memory, machine.device.available)
        yield from packing_hints(recipe, lengths, state.num_processes, state.device)
        yield from attention_hints(recipe, config, state.device)


def checkpointing_hints(
    recipe: Recipe,
    config: PretrainedConfig,
    memory: MemoryEstimate,
    available: int | None,
    sharding: Sharding | None = None,
) -> Iterator[Hint]:
    """Yield the hint to keep activations instead of computing them twice, if they fit.

    Args:
        recipe: recipe of the training.
        config: configuration of the backbone.
        memory: memory of the training on its device.
        available: bytes of memory of that device; `None` if it is not known, so that the smallest
            GPU on which the training fits counts.
        sharding: sharding of the training over processes.
    """
    if not recipe.training.gradient_checkpointing:
        return
    training = recipe.training.model_copy(update={"gradient_checkpointing": False})
    base = memory.components.get("libraries", 0)
    kept = estimate_memory(
        recipe.model_copy(update={"training": training}),
        config,
        memory.batch,
        memory.device,
        base,
        sharding,
    )
    smallest = fitting_gpus(memory.total)[:1]
    fits_there = bool(smallest) and fitting_gpus(kept.total)[:1] == smallest
    if kept.total <= available if available is not None else fits_there:
        place = f" on {smallest[0]}" if available is None else ""
        yield Hint(
            ("training.gradient_checkpointing=false",),
            f"activations fit{place} ({kept.total / GB:.1f} GB in all); not computed twice, a step "
            "takes a quarter to a third less time",
        )


def packing_hints(
    recipe: Recipe, lengths: NDArray[np.int32], processes: int, device: torch.device
) -> Iterator[Hint]:
    """Yield the hint to pack examples on a GPU, if forward passes are padded a lot.

    Args:
        recipe: recipe of the training of a decoder, its attention resolved.
        lengths: tokens of each training example, (examples,) int32.
        processes: number of processes of the training.
        device: device of the training.

    Raises:
        TrainingError: if there are more processes than examples in a step.
    """
    if device.type != "cuda" or not allows_packing(recipe):
        return
    batcher = MicroBatcher.of(recipe, processes, device, recipe.backbone.attention)
    computed = sum(one.tokens for one in batcher.passes(lengths))
    padding = 1 - int(lengths.sum()) / computed
    if not batcher.packing and padding > MUCH_PADDING:
        yield Hint(
            ("data.packing=true",),
            f"{padding:.0%} of the tokens of a forward pass are padding",
        )


def attention_hints(
    recipe: Recipe, config: PretrainedConfig, device: torch.device
) -> Iterator[Hint]:
    """Yield the hint to use flash-attn where it is installed and `varlen` cannot compute the model.

    Args:
        recipe: recipe of the training, its dtype and attention resolved.
        config: configuration of the backbone.
        device: device of the training.
    """
    spec = recipe.backbone
    if device.type != "cuda" or spec.attention in WITH_LENGTHS or spec.dtype == "float32":
        return
    name = FLASH[0]
    is_open = allows_packing(recipe) and recipe.data.packing is None
    is_known = supports_flash_attention(config)
    if is_open and is_known and flash_attention_problem(name, device) is None:
        yield Hint(
            (f"backbone.attention={name}",),
            "flash-attn is installed; it separates examples without a mask, and passes have no "
            "padding then",
        )
