"""Peak memory of a training, from shapes alone."""

from __future__ import annotations

import math
import platform
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from lora_kit.backbone.attention import FLASH
from lora_kit.backbone.load import compute_dtype
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.preflight.live import LiveBytes
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.preflight.shapes import ShapedModel, shaped_model
from lora_kit.preflight.sharing import Sharing
from lora_kit.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Device = Literal["cpu", "cuda"]

# What the allocator holds besides what is alive in the passes, as a share of it.
FRAGMENTATION = 0.05
# Before version 2.38 of glibc, aligned blocks that were freed are mostly not used again (its bug
# 14581). Measured by tests/benchmarks/estimate.py on SmolLM2-135M, as a share of what is alive in a
# pass that recomputes nothing: 1.7 to 1.8 are held, and 0.74 where layers are recomputed, though
# only 0.15 are alive then. With every tensor mapped by itself (MALLOC_MMAP_THRESHOLD_) little more
# is held than is alive, at half as much work again.
HELD_BY_OLD_GLIBC, HELD_WHERE_RECOMPUTED = 1.75, 0.75
GLIBC_THAT_REUSES = (2, 38)
# A CUDA context with the kernels of torch and the workspace of cuBLAS. Not measured here.
CUDA_BASE = 700 * 2**20
# AdamW keeps two moments of each parameter (Loshchilov & Hutter 2019, arXiv:1711.05101).
MOMENTS = 2
FLOAT32 = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training holds at most on one device.

    Attributes:
        device: `cpu`, where it is the process that is measured, or `cuda`.
        batch: the largest micro batch.
        components: bytes by what they are for, at the moment of the peak.
        total: bytes.
    """

    device: Device
    batch: MicroBatch
    components: dict[str, int]
    total: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Footprint:
    """What a training holds, before it is said over how many processes it is divided.

    Attributes:
        device: what is trained on.
        batch: the largest micro batch.
        dtype: what is computed in.
        libraries: bytes that are there before the backbone is.
        shaped: the model.
        frozen: bytes of the backbone, by what they are.
        passes: bytes of a forward and backward pass at its peak, by what they are.
        allocator: bytes that are held besides those.
    """

    device: Device
    batch: MicroBatch
    dtype: torch.dtype
    libraries: int
    shaped: ShapedModel
    frozen: dict[str, int]
    passes: dict[str, int]
    allocator: int

    def of_a_process(self, sharing: Sharing) -> MemoryEstimate:
        """Peak memory of one process among those that share it all."""
        masters = FLOAT32 * self.shaped.adapter_parameters
        components = {
            "libraries": self.libraries,
            **{name: math.ceil(size / sharing.weights) for name, size in self.frozen.items()},
            "gathered weights": sharing.gathered(self.shaped, self.dtype),
            "adapter (float32)": math.ceil(masters / sharing.weights),
            "its gradients": math.ceil(masters / sharing.gradients),
            "buckets of gradients": masters if sharing.buckets else 0,
            "its AdamW moments": math.ceil(MOMENTS * masters / sharing.moments),
            **self.passes,
            "allocator": self.allocator,
        }
        components = {name: size for name, size in components.items() if size}
        return MemoryEstimate(self.device, self.batch, components, sum(components.values()))


def estimate(
    recipe: Recipe,
    config: PretrainedConfig,
    batch: MicroBatch,
    device: Device,
    base_bytes: int,
    sharing: Sharing | None = None,
) -> MemoryEstimate:
    """Peak memory of a recipe's training on one process: `footprint`, shared as `sharing` says.

    Raises:
        LoraKitError: as `footprint` does.
    """
    whole = footprint(recipe, config, batch, device, base_bytes)
    return whole.of_a_process(sharing or Sharing())


def footprint(
    recipe: Recipe, config: PretrainedConfig, batch: MicroBatch, device: Device, base_bytes: int
) -> Footprint:
    """What a recipe's training holds at its peak.

    The forward and backward pass of the largest micro batch are run operation by operation on
    tensors that have shapes and no data, and what is alive is counted; weights, gradients and
    moments are added.

    Args:
        recipe: what is trained, and how.
        config: of the backbone.
        batch: the largest micro batch.
        device: what is trained on.
        base_bytes: what is there before the backbone is: `libraries_memory()` or `CUDA_BASE`.

    Raises:
        BackboneError: if transformers has no causal language model of this configuration.
        AdapterError: if a target of the adapter is misspelt.
    """
    dtype = compute_dtype(recipe.backbone)
    quantization, attention = recipe.backbone.quantization, recipe.backbone.attention
    if attention == FLASH:
        # Its kernels take no tensors without data. What they keep is what sdpa keeps that is given
        # no mask: neither has the square of the length, and they tell rows apart by their lengths.
        attention, batch = "sdpa", replace(batch, masked=False)
    shaped = shaped_model(
        config, recipe.adapter, quantization, dtype, attention, on_gpu=device == "cuda"
    )
    recomputed = recipe.training.gradient_checkpointing
    passes = _passes(shaped, batch, dtype, recomputed)
    return Footprint(
        device=device,
        batch=batch,
        dtype=dtype,
        libraries=base_bytes,
        shaped=shaped,
        frozen=_frozen(shaped, config, dtype, device),
        passes=passes,
        allocator=_allocator(shaped, batch, dtype, recomputed, device, sum(passes.values())),
    )


def _frozen(
    shaped: ShapedModel, config: PretrainedConfig, dtype: torch.dtype, device: Device
) -> dict[str, int]:
    """Bytes of the backbone."""
    stored = getattr(config, "dtype", None) or dtype
    quantized = {"quantized weights": shaped.quantized_bytes}
    if device == "cpu" and stored is dtype:
        # Weights that are used as they are stored stay views of the mapped file, and one of them
        # keeps all of it mapped, the weights that were quantized included.
        return quantized | {"weights file (mapped)": shaped.checkpoint_parameters * dtype.itemsize}
    return quantized | {"other frozen weights": shaped.dense_bytes}


def _memory_is_reused() -> bool:
    """Whether this machine's allocator gives freed blocks out again."""
    name, version = platform.libc_ver()
    if name != "glibc":
        return True
    return tuple(int(part) for part in version.split(".")[:2]) >= GLIBC_THAT_REUSES


def _allocator(
    shaped: ShapedModel,
    batch: MicroBatch,
    dtype: torch.dtype,
    recomputed: bool,
    device: Device,
    alive: int,
) -> int:
    """Bytes that are held besides the `alive` ones of the passes."""
    if device == "cuda" or _memory_is_reused():
        return round(FRAGMENTATION * alive)
    if not recomputed:
        return round((HELD_BY_OLD_GLIBC - 1) * alive)
    whole = sum(_passes(shaped, batch, dtype, checkpointing=False).values())
    return max(round(HELD_WHERE_RECOMPUTED * whole) - alive, 0)


def _passes(
    shaped: ShapedModel, batch: MicroBatch, dtype: torch.dtype, checkpointing: bool
) -> dict[str, int]:
    """Bytes of one forward and backward pass at their peak, weights and gradients left out."""
    model = shaped.model
    tracker = LiveBytes(batch.supervised)
    with shaped.mode:
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable(
                {"use_reentrant": False, "preserve_rng_state": False}
            )
        else:
            model.activation_checkpointing_disable()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        tracker.ignore(model.parameters())
        tracker.ignore(model.buffers())
        tracker.ignore(p.grad for p in model.parameters() if p.grad is not None)
        inputs = _inputs(batch)
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda *_: setattr(tracker, "label", "logits"))
        with tracker:
            tracker.label = "activations"
            # Not the autocast of the device that is estimated for: without one, there is none.
            half = dtype is not torch.float32
            with torch.autocast("cpu", dtype) if half else nullcontext():
                loss = supervised_nll(model, inputs)[0].sum() / batch.supervised
            tracker.label = "backward pass"
            loss.backward()  # type: ignore[no-untyped-call]
    return tracker.peak


def _inputs(batch: MicroBatch) -> dict[str, Any]:
    """Shapes of `likelihood.pad_examples`; without a mask, where none is made of them."""
    ids = torch.zeros(batch.rows, batch.length, dtype=torch.int64)
    mask = torch.ones_like(ids) if batch.masked else None
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": torch.zeros_like(ids) if batch.masked else None,
        "labels": torch.zeros_like(ids),
    }
