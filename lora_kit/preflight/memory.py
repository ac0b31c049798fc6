"""Peak memory of a training, estimated from tensor shapes."""

from __future__ import annotations

import math
import platform
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from lora_kit.adapter.fused_products import holds_dequantized
from lora_kit.backbone.attention import WITH_LENGTHS
from lora_kit.backbone.load import FOUR_BIT, compute_dtype
from lora_kit.backbone.varlen import VARLEN
from lora_kit.modeling.checkpointing import disable_checkpointing, enable_checkpointing
from lora_kit.modeling.likelihood import chunk_tokens, logits_at, token_kl, token_nll
from lora_kit.modeling.model_inputs import supervised_positions
from lora_kit.preflight.allocation_tracker import AllocationTracker
from lora_kit.preflight.fake_model import FakeModel, build_fake_model
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.preflight.optimizer_memory import FLOAT32, state_bytes, state_name
from lora_kit.preflight.sharding import Sharding
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.training import Optimizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Device = Literal["cpu", "cuda"]

# Bytes that the allocator holds beyond live tensors, as a share of the live bytes of a pass.
FRAGMENTATION = 0.05
# Before version 2.38, glibc rarely reuses freed aligned blocks (glibc bug 14581). Held bytes as a
# share of the live bytes of a pass without gradient checkpointing, measured by
# tests/benchmarks/estimate.py on SmolLM2-135M: 1.7 to 1.8 without checkpointing, and 0.74 with it,
# when only 0.15 are alive. If each tensor is mapped separately (MALLOC_MMAP_THRESHOLD_), held and
# live bytes are nearly equal, but a step takes 1.5 times as long.
HELD_BY_OLD_GLIBC, HELD_WITH_CHECKPOINTING = 1.75, 0.75
GLIBC_WITH_REUSE = (2, 38)
# CUDA context with the kernels of torch and the workspace of cuBLAS. Not measured here.
CUDA_BASE = 700 * 2**20
QUANTIZED = "quantized weights"


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a training on one device.

    Attributes:
        device: `cpu` (memory of the process) or `cuda`.
        batch: largest micro batch.
        components: bytes by purpose, at the moment of the peak.
        total: sum of the components, bytes.
    """

    device: Device
    batch: MicroBatch
    components: dict[str, int]
    total: int

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Footprint:
    """Memory of a training before sharding.

    Attributes:
        device: training device.
        batch: largest micro batch.
        dtype: compute dtype.
        libraries: bytes held before the backbone is loaded.
        fake: model without data.
        frozen: bytes of the backbone, by purpose.
        passes: bytes of a forward and backward pass at their peak, by purpose.
        allocator: bytes that the allocator holds beyond live tensors.
        optim: optimizer.
    """

    device: Device
    batch: MicroBatch
    dtype: torch.dtype
    libraries: int
    fake: FakeModel
    frozen: dict[str, int]
    passes: dict[str, int]
    allocator: int
    optim: Optimizer

    def per_process(self, sharding: Sharding) -> MemoryEstimate:
        """Return the peak memory of one process under a sharding."""
        masters = FLOAT32 * self.fake.adapter_parameters
        trained = (p for p in self.fake.model.parameters() if p.requires_grad)
        state = state_bytes(self.optim, trained)
        components = {
            "libraries": self.libraries,
            **{name: self._share(name, sharding) for name in self.frozen},
            "gathered weights": sharding.gathered_bytes(self.fake, self.dtype),
            "adapter (float32)": math.ceil(masters / sharding.weights),
            "adapter gradients": math.ceil(masters / sharding.gradients),
            "gradient buckets": masters if sharding.buckets else 0,
            state_name(self.optim): math.ceil(state / sharding.moments),
            **self.passes,
            "allocator overhead": self.allocator,
        }
        if sharding.offloaded:
            trained_parts = ("adapter (float32)", "adapter gradients", state_name(self.optim))
            components |= dict.fromkeys(trained_parts, 0)
        components = {name: size for name, size in components.items() if size}
        return MemoryEstimate(self.device, self.batch, components, sum(components.values()))

    def _share(self, name: str, sharding: Sharding) -> int:
        """Return the bytes of a part of the backbone in one process, on its device."""
        whole = self.fake.constant_bytes if name == QUANTIZED else 0
        if sharding.offloaded:
            return whole
        return whole + math.ceil((self.frozen[name] - whole) / sharding.weights)


def estimate_memory(
    recipe: Recipe,
    config: PretrainedConfig,
    batch: MicroBatch,
    device: Device,
    base_bytes: int,
    sharding: Sharding | None = None,
) -> MemoryEstimate:
    """Return the peak memory of a recipe's training in one process.

    Arguments are those of `footprint`; without `sharding`, the process holds everything.

    Raises:
        LoraKitError: as in `footprint`.
    """
    unsharded = footprint(recipe, config, batch, device, base_bytes)
    return unsharded.per_process(sharding or Sharding())


def footprint(
    recipe: Recipe, config: PretrainedConfig, batch: MicroBatch, device: Device, base_bytes: int
) -> Footprint:
    """Return the memory of a recipe's training at its peak, before sharding.

    The forward and backward pass of the largest micro batch run on fake tensors, and the bytes of
    live tensors are counted; weights, gradients and moments are added.

    Args:
        recipe: recipe of the training.
        config: configuration of the backbone.
        batch: largest micro batch.
        device: training device.
        base_bytes: bytes held before the backbone is loaded: `libraries_memory()` or `CUDA_BASE`.

    Raises:
        BackboneError: if transformers has no causal language model of this configuration.
        AdapterError: if a target of the adapter is misspelt.
    """
    dtype = compute_dtype(recipe.backbone)
    quantization, attention = recipe.backbone.quantization, recipe.backbone.attention
    if attention in WITH_LENGTHS:
        # Their kernels do not run on fake tensors. Their memory is that of sdpa without a mask:
        # both are linear in the length, and examples are separated by their lengths. With
        # `varlen`, padded rows have a mask.
        padded = attention == VARLEN and batch.rows > 1
        attention, batch = "sdpa", replace(batch, masked=batch.masked and padded)
    fake = build_fake_model(
        config, recipe.adapter, quantization, dtype, attention, on_gpu=device == "cuda"
    )
    recomputed = recipe.training.gradient_checkpointing
    held_to_base = recipe.retention.non_target_kl is not None
    passes = _passes(fake, batch, dtype, recomputed, device, held_to_base)
    return Footprint(
        device=device,
        batch=batch,
        dtype=dtype,
        libraries=base_bytes,
        fake=fake,
        frozen=_frozen(fake, config, dtype, device) | _dequantized(recipe, fake, dtype, device),
        passes=passes,
        optim=recipe.training.optim,
        allocator=_allocator(fake, batch, dtype, recomputed, device, passes, held_to_base),
    )


def _frozen(
    fake: FakeModel, config: PretrainedConfig, dtype: torch.dtype, device: Device
) -> dict[str, int]:
    """Return the bytes of the backbone, by purpose."""
    stored = getattr(config, "dtype", None) or dtype
    quantized = {QUANTIZED: fake.quantized_bytes}
    if device == "cpu" and stored is dtype:
        # Weights in the dtype of the file are views of the memory-mapped file, and a single view
        # keeps all of the file mapped, including the weights that were quantized.
        return quantized | {"weights file (mapped)": fake.checkpoint_parameters * dtype.itemsize}
    return quantized | {"other frozen weights": fake.dense_bytes}


def _dequantized(
    recipe: Recipe, fake: FakeModel, dtype: torch.dtype, device: Device
) -> dict[str, int]:
    """Return the bytes of 4-bit weights that are held dequantized while a CPU trains LoRA."""
    is_plain = recipe.adapter.method == "lora" and not recipe.adapter.dropout
    if device != "cpu" or recipe.backbone.quantization not in FOUR_BIT or not is_plain:
        return {}
    weights = 2 * (fake.quantized_bytes - fake.constant_bytes)
    held = holds_dequantized(weights, dtype)
    return {"dequantized weights": weights * dtype.itemsize} if held else {}


def _allocator_reuses_blocks() -> bool:
    """Return true if this machine's C library reuses freed blocks."""
    name, version = platform.libc_ver()
    if name != "glibc":
        return True
    return tuple(int(part) for part in version.split(".")[:2]) >= GLIBC_WITH_REUSE


def _allocator(
    fake: FakeModel,
    batch: MicroBatch,
    dtype: torch.dtype,
    recomputed: bool,
    device: Device,
    passes: dict[str, int],
    held_to_base: bool,
) -> int:
    """Return the bytes that the allocator holds beyond the live ones of the passes."""
    alive = sum(passes.values())
    if device == "cuda" or _allocator_reuses_blocks():
        return round(FRAGMENTATION * alive)
    if not recomputed:
        return round((HELD_BY_OLD_GLIBC - 1) * alive)
    not_recomputed = sum(_passes(fake, batch, dtype, False, device, held_to_base).values())
    return max(round(HELD_WITH_CHECKPOINTING * not_recomputed) - alive, 0)


def _passes(
    fake: FakeModel,
    batch: MicroBatch,
    dtype: torch.dtype,
    checkpointing: bool,
    device: Device,
    held_to_base: bool,
) -> dict[str, int]:
    """Return the bytes of a forward and backward pass at their peak, by purpose.

    Weights and gradients are not counted. With `retention.non_target_kl`, which is `held_to_base`,
    the base's logits and the divergence's gradient are.
    """
    model = fake.model
    tracker = AllocationTracker(batch.supervised)
    with fake.mode:
        model.train()
        if checkpointing:
            enable_checkpointing(model, use_reentrant=False, preserve_rng_state=False)
        else:
            disable_checkpointing(model)
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
            # CUDA autocast does not exist on machines without a GPU.
            half = dtype is not torch.float32
            with torch.autocast("cpu", dtype) if half else nullcontext():
                targets, rows, columns = supervised_positions(inputs)
                logits = logits_at(model, inputs, rows, columns)
                # The tensors are on a CPU, where fewer logits are converted at a time.
                chunk = chunk_tokens(device)
                losses = token_nll(logits, targets, chunk)
                if held_to_base:
                    base = torch.empty_like(logits)
                    losses = losses + token_kl(base, logits, excluded=targets, chunk=chunk)
                loss = losses.sum() / batch.supervised
            tracker.label = "backward pass"
            loss.backward()  # type: ignore[no-untyped-call]
    return tracker.peak


def _inputs(batch: MicroBatch) -> dict[str, Any]:
    """Return inputs shaped like those of `model_inputs.pad_examples`, (rows, length) int64.

    Mask and positions are `None` if the batch needs no mask.
    """
    ids = torch.zeros(batch.rows, batch.length, dtype=torch.int64)
    mask = torch.ones_like(ids) if batch.masked else None
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": torch.zeros_like(ids) if batch.masked else None,
        "labels": torch.zeros_like(ids),
    }
