"""On which GPUs a training fits, and the smallest change with which it would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.preflight.memory import Device, MemoryEstimate, estimate
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.recipe.initialisations import NOT_PACKED, initialisation_of
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MIB = 2**20
# What the driver reports (nvidia-smi, rocm-smi), MiB: less than what is printed on the box where
# error correction takes a share.
CARDS = {
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
SHORTER = (1, 2, 4)


def fitting_cards(total: int) -> tuple[str, ...]:
    """The known GPUs with at least `total` bytes, the smallest first."""
    fitting = [(memory, name) for name, memory in CARDS.items() if memory * MIB >= total]
    return tuple(name for _, name in sorted(fitting))


@dataclass(frozen=True)
class Advice:
    """A change with which a training fits.

    Attributes:
        assignments: as `--set` takes them; none where it fits as it is.
        estimate: with the change.
    """

    assignments: tuple[str, ...]
    estimate: MemoryEstimate


def advice(
    recipe: Recipe,
    config: PretrainedConfig,
    batch: MicroBatch,
    cutting: MicroBatcher,
    device: Device,
    base_bytes: int,
    memory: int,
) -> Advice | None:
    """The smallest change of a recipe that fits into `memory` bytes, each one estimated.

    In this order, what changes the least coming first: fewer rows in a forward pass (the result
    stays the same), gradient checkpointing (a third slower), 4-bit weights, shorter rows.

    Args:
        recipe: as it is.
        config: of the backbone.
        batch: the recipe's largest micro batch.
        cutting: of its steps into forward passes.
        device: what is trained on.
        base_bytes: see `estimate`.
        memory: bytes that there are.

    Returns:
        The change, or `None` if not even all of them together are enough.

    Raises:
        LoraKitError: as `estimate` does.
    """
    for changed, assignments, length in _changes(recipe, batch.length):
        # One row tells whether it is worth looking for how many.
        if _with_rows(changed, config, batch, 1, length, device, base_bytes).total > memory:
            continue
        for rows in _fewer(batch.rows, cutting):
            found = _with_rows(changed, config, batch, rows, length, device, base_bytes)
            if found.total <= memory:
                cut_smaller = _cut_smaller(batch, cutting, rows, length)
                return Advice((*assignments, *cut_smaller), found)
    return None


def _changes(recipe: Recipe, longest: int) -> Iterator[tuple[Recipe, tuple[str, ...], int]]:
    is_packable = (
        recipe.adapter.why_not_on("nf4") is None
        and initialisation_of(recipe.adapter) not in NOT_PACKED
    )
    quantizations = dict.fromkeys([recipe.backbone.quantization, *(["nf4"] if is_packable else [])])
    recomputable = not recipe.adapter.virtual_tokens
    checkpointing = dict.fromkeys([recipe.training.gradient_checkpointing, recomputable])
    for shorter in SHORTER:
        for quantization in quantizations:
            for recompute in checkpointing:
                length = max(longest // shorter, 1)
                assignments = []
                if recompute != recipe.training.gradient_checkpointing:
                    assignments.append("training.gradient_checkpointing=true")
                if quantization != recipe.backbone.quantization:
                    assignments.append("backbone.quantization=nf4")
                    if recipe.merge.base == "original":
                        assignments.append("merge.base=dequantized")
                # A pack is shorter by its tokens alone until it is an example of the full length.
                if shorter > 1 and (not recipe.data.packing or length < recipe.data.max_length):
                    assignments.append(f"data.max_length={length}")
                if shorter > 1 and recipe.data.packing and recipe.training.max_tokens_per_batch:
                    assignments.append(f"training.max_tokens_per_batch={length}")
                yield _changed(recipe, quantization, recompute), tuple(assignments), length


def _changed(recipe: Recipe, quantization: str, recompute: bool) -> Recipe:
    backbone = recipe.backbone.model_copy(update={"quantization": quantization})
    training = recipe.training.model_copy(update={"gradient_checkpointing": recompute})
    return recipe.model_copy(update={"backbone": backbone, "training": training})


def _fewer(rows: int, cutting: MicroBatcher) -> list[int]:
    """Numbers of rows that can be asked for, the largest first, and that of now before them.

    Tokens can be bounded to any number of rows; `micro_batch_size` has to divide the share.
    """
    divided = rows if cutting.tokens else cutting.share
    return [rows, *(number for number in range(rows - 1, 0, -1) if divided % number == 0)]


def _cut_smaller(
    batch: MicroBatch, cutting: MicroBatcher, rows: int, length: int
) -> tuple[str, ...]:
    """The assignment with which a forward pass has so many rows; none for a pack, which is one."""
    if cutting.packing or (rows, length) == (batch.rows, batch.length):
        return ()
    if cutting.tokens:
        # Of shorter rows, as many more as before would fit into as many tokens.
        return (f"training.max_tokens_per_batch={rows * length}",)
    return () if rows == batch.rows else (f"training.micro_batch_size={rows}",)


def _with_rows(
    recipe: Recipe,
    config: PretrainedConfig,
    batch: MicroBatch,
    rows: int,
    length: int,
    device: Device,
    base_bytes: int,
) -> MemoryEstimate:
    return estimate(recipe, config, batch.resized(rows, length), device, base_bytes)
