"""GPUs on which a training fits, and the smallest change with which it would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.preflight.memory import Device, MemoryEstimate, estimate_memory
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.recipe.initialisations import NOT_PACKED, initialisation_of
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MIB = 2**20
# Memory in MiB as reported by the driver (nvidia-smi, rocm-smi), which is less than the nominal
# size if error correction takes a share.
GPUS = {
    "T4 16 GB": 15_360,
    "V100 16 GB": 16_384,
    "RTX 4080 16 GB": 16_376,
    "A10G 24 GB": 23_028,
    "L4 24 GB": 23_034,
    "RTX 3090 24 GB": 24_576,
    "RTX 4090 24 GB": 24_564,
    "RTX 5090 32 GB": 32_607,
    "V100 32 GB": 32_768,
    "A100 40 GB": 40_960,
    "L40S 48 GB": 46_068,
    "RTX A6000 48 GB": 49_140,
    "A100 80 GB": 81_920,
    "H100 80 GB": 81_559,
    "H200 141 GB": 143_771,
    "B200 192 GB": 183_359,
    "MI300X 192 GB": 196_592,
}
# Divisors of the longest example that `find_fitting_change` tries.
LENGTH_DIVISORS = (1, 2, 4)


def fitting_gpus(total: int) -> tuple[str, ...]:
    """Return the known GPUs with at least `total` bytes of memory, smallest first."""
    fitting = [(memory, name) for name, memory in GPUS.items() if memory * MIB >= total]
    return tuple(name for _, name in sorted(fitting))


@dataclass(frozen=True)
class FittingChange:
    """Change of a recipe with which its training fits.

    Attributes:
        assignments: arguments of `--set`; empty if the recipe fits unchanged.
        estimate: memory of the changed recipe.
    """

    assignments: tuple[str, ...]
    estimate: MemoryEstimate


def find_fitting_change(
    recipe: Recipe,
    config: PretrainedConfig,
    batch: MicroBatch,
    batcher: MicroBatcher,
    device: Device,
    base_bytes: int,
    memory: int,
) -> FittingChange | None:
    """Return the smallest change of a recipe with which its training fits into `memory` bytes.

    Each candidate is estimated, least intrusive first: fewer rows per forward pass (same result),
    gradient checkpointing (a third slower), 4-bit weights, shorter rows.

    Args:
        recipe: unchanged recipe.
        config: configuration of the backbone.
        batch: largest micro batch of the recipe.
        batcher: division of an optimizer step into forward passes.
        device: training device.
        base_bytes: as in `estimate_memory`.
        memory: available bytes.

    Returns:
        The change, or `None` if all of them together are not enough.

    Raises:
        LoraKitError: as in `estimate_memory`.
    """

    def estimated(changed: Recipe, rows: int, length: int) -> MemoryEstimate:
        return estimate_memory(changed, config, batch.resized(rows, length), device, base_bytes)

    for changed, assignments, length in _changes(recipe, batch.length, batcher):
        # If a single row does not fit, no number of rows does.
        if estimated(changed, 1, length).total > memory:
            continue
        for rows in _row_candidates(batch.rows, batcher):
            estimate = estimated(changed, rows, length)
            if estimate.total <= memory:
                rows_assignment = _rows_assignment(batch, batcher, rows, length)
                return FittingChange((*assignments, *rows_assignment), estimate)
    return None


def _changes(
    recipe: Recipe, longest: int, batcher: MicroBatcher
) -> Iterator[tuple[Recipe, tuple[str, ...], int]]:
    """Yield changed recipes, their assignments and the tokens of their longest row."""
    is_quantizable = (
        recipe.adapter.why_not_on("nf4") is None
        and initialisation_of(recipe.adapter) not in NOT_PACKED
    )
    quantizations = dict.fromkeys(
        [recipe.backbone.quantization, *(["nf4"] if is_quantizable else [])]
    )
    recomputable = not recipe.adapter.virtual_tokens
    is_packed = _is_one_pack(batcher)
    checkpointing = dict.fromkeys([recipe.training.gradient_checkpointing, recomputable])
    for divisor in LENGTH_DIVISORS:
        for quantization in quantizations:
            for recompute in checkpointing:
                length = max(longest // divisor, 1)
                assignments = []
                if recompute != recipe.training.gradient_checkpointing:
                    assignments.append("training.gradient_checkpointing=true")
                if quantization != recipe.backbone.quantization:
                    assignments.append("backbone.quantization=nf4")
                    if recipe.merge.base == "original":
                        assignments.append("merge.base=dequantized")
                # Fewer tokens per pack do not shorten an example of the full length.
                if divisor > 1 and (not is_packed or length < recipe.data.max_length):
                    assignments.append(f"data.max_length={length}")
                limited = recipe.training.max_tokens_per_batch or batcher.tokens is None
                if divisor > 1 and is_packed and limited:
                    assignments.append(f"training.max_tokens_per_batch={length}")
                yield _changed(recipe, quantization, recompute), tuple(assignments), length


def _is_one_pack(batcher: MicroBatcher) -> bool:
    """Return true if a forward pass is estimated as one row of all its tokens."""
    return bool(batcher.packing) and not batcher.unpadded


def _changed(recipe: Recipe, quantization: str, recompute: bool) -> Recipe:
    backbone = recipe.backbone.model_copy(update={"quantization": quantization})
    training = recipe.training.model_copy(update={"gradient_checkpointing": recompute})
    return recipe.model_copy(update={"backbone": backbone, "training": training})


def _row_candidates(rows: int, batcher: MicroBatcher) -> list[int]:
    """Return the possible numbers of rows per forward pass, starting with the current one.

    A token limit allows any number of rows; `micro_batch_size` must divide a process's share.
    """
    dividend = rows if batcher.tokens else batcher.share
    return [rows, *(number for number in range(rows - 1, 0, -1) if dividend % number == 0)]


def _rows_assignment(
    batch: MicroBatch, batcher: MicroBatcher, rows: int, length: int
) -> tuple[str, ...]:
    """Return the assignment that sets the rows of a forward pass; none for a pack, a single row."""
    if _is_one_pack(batcher) or (rows, length) == (batch.rows, batch.length):
        return ()
    if batcher.tokens:
        # With the old token limit, more of the shorter rows would fit than intended.
        return (f"training.max_tokens_per_batch={rows * length}",)
    return () if rows == batch.rows else (f"training.micro_batch_size={rows}",)
