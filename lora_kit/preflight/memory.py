"""Peak memory of a training, from shapes alone."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.attention import FLASH
from lora_kit.backbone import compute_dtype
from lora_kit.data.dataset import PreparedData
from lora_kit.likelihood import supervised_nll
from lora_kit.preflight.live import LiveBytes
from lora_kit.preflight.shapes import ShapedModel, shaped_model
from lora_kit.preflight.sharing import Sharing
from lora_kit.recipe import Recipe
from lora_kit.training.passes import Cutting

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
class MicroBatch:
    """The shape of one forward pass.

    Attributes:
        rows: of the batch.
        length: tokens a row, padding included.
        supervised: tokens that the loss is taken on, in all rows.
        masked: whether attention needs a mask of its own: some rows are padded, or several examples
            share one.
    """

    rows: int
    length: int
    supervised: int
    masked: bool

    def resized(self, rows: int, length: int) -> MicroBatch:
        """The same kind of batch with fewer rows or tokens."""
        share = rows * length / (self.rows * self.length)
        return replace(
            self,
            rows=rows,
            length=length,
            supervised=max(math.ceil(self.supervised * share), 1),
            # A row of its own needs no mask; a pack is one row as it is.
            masked=self.masked and (rows > 1 or self.rows == 1),
        )


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


def largest_micro_batch(data: PreparedData, cutting: Cutting) -> MicroBatch:
    """The largest forward pass that a training may make: its longest examples side by side.

    Args:
        data: at least one example, of which only the lengths are read.
        cutting: of a step into forward passes.
    """
    lengths = data.lengths
    order = np.argsort(-lengths, kind="stable")
    taken = (
        _packed(lengths, order, cutting)
        if cutting.packing
        else _side_by_side(lengths, order, cutting)
    )
    chosen = lengths[taken]
    supervised = data.table.column("supervised").to_numpy()[taken]
    return MicroBatch(
        rows=1 if cutting.packing else len(taken),
        length=int(chosen.sum() if cutting.packing else chosen.max()),
        supervised=int(supervised.sum()),
        masked=len(taken) > 1 if cutting.packing else len(set(chosen.tolist())) > 1,
    )


def _side_by_side(
    lengths: NDArray[np.int32], order: NDArray[np.int64], cutting: Cutting
) -> NDArray[np.int64]:
    longest = int(lengths[order[0]])
    fitting = max(cutting.tokens // longest, 1) if cutting.tokens else cutting.rows
    return order[: min(cutting.rows, fitting)]


def _packed(
    lengths: NDArray[np.int32], order: NDArray[np.int64], cutting: Cutting
) -> NDArray[np.int64]:
    """The longest that find room in one pack."""
    taken: list[int] = []
    room, shortest = cutting.tokens or math.inf, int(lengths[order[-1]])
    for place in order.tolist():
        if not taken or lengths[place] <= room:
            taken.append(place)
            room -= int(lengths[place])
        if len(taken) == cutting.rows or room < shortest:
            break
    return np.array(taken)


@lru_cache(maxsize=1)
def libraries_memory() -> int:
    """Bytes that a process on this machine holds for Python and the libraries of a training.

    Measured in a process of its own, which takes as long as importing them does.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lora_kit.preflight.libraries"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(done.stdout.split()[-1])


def estimate(
    recipe: Recipe,
    config: PretrainedConfig,
    batch: MicroBatch,
    device: Device,
    base_bytes: int,
    sharing: Sharing | None = None,
) -> MemoryEstimate:
    """Peak memory of a recipe's training on one process.

    The forward and backward pass of the largest micro batch are run operation by operation on
    tensors that have shapes and no data, and what is alive is counted; weights, gradients and
    moments are added.

    Args:
        recipe: what is trained, and how.
        config: of the backbone.
        batch: the largest micro batch.
        device: what is trained on.
        base_bytes: what is there before the backbone is: `libraries_memory()` or `CUDA_BASE`.
        sharing: of it all among several processes.

    Raises:
        BackboneError: if transformers has no causal language model of this configuration.
        AdapterError: if a target of the adapter is misspelt.
    """
    sharing = sharing or Sharing()
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
    masters = FLOAT32 * shaped.adapter_parameters
    components = {
        "libraries": base_bytes,
        **{
            name: math.ceil(size / sharing.weights)
            for name, size in _frozen(shaped, config, dtype, device).items()
        },
        "gathered weights": sharing.gathered(shaped, dtype),
        "adapter (float32)": math.ceil(masters / sharing.weights),
        "its gradients": math.ceil(masters / sharing.gradients),
        "buckets of gradients": masters if sharing.buckets else 0,
        "its AdamW moments": math.ceil(MOMENTS * masters / sharing.moments),
        **passes,
        "allocator": _allocator(shaped, batch, dtype, recomputed, device, sum(passes.values())),
    }
    components = {name: size for name, size in components.items() if size}
    return MemoryEstimate(device, batch, components, sum(components.values()))


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
