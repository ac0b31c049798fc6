"""Memory of the evaluation of a merged model, which follows a training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.devices import WEIGHTS_SHARE
from lora_kit.backbone.load import compute_dtype
from lora_kit.evaluation.engine.batching import LOGIT_BYTES
from lora_kit.preflight.memory import Device

if TYPE_CHECKING:
    from lora_kit.recipe.recipe import Recipe


@dataclass(frozen=True)
class MergedMemory:
    """Memory of one device while the merged model is evaluated.

    The backbone is not in memory then. Batches that do not fit beside the weights are halved.

    Attributes:
        device: `cpu` (memory of the process) or `cuda`.
        gpus: number of GPUs that the weights are spread over.
        dtype: dtype of the weights in memory.
        weights: bytes of the weights on each device.
        total: bytes of libraries, weights and the logits of a batch.
        total_in_float32: `total` if the weights have to be stored in float32, since `dtype` would
            round the adapter's change away; `None` if the recipe decides on the dtype.
    """

    device: Device
    gpus: int
    dtype: str
    weights: int
    total: int
    total_in_float32: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)


def merged_memory(recipe: Recipe, parameters: int, device: Device, base_bytes: int) -> MergedMemory:
    """Return the memory of the evaluation of a recipe's merged model.

    Args:
        recipe: recipe of the training.
        parameters: number of parameters of the backbone.
        device: device of the evaluation.
        base_bytes: as in `estimate_memory`.
    """
    computed, named = compute_dtype(recipe.backbone), recipe.merge.dtype
    stored: torch.dtype = computed if named == "auto" else getattr(torch, named)
    dtype = torch.promote_types(stored, computed)
    gpus = recipe.evaluation.gpus if device == "cuda" else 1
    besides = base_bytes + int(LOGIT_BYTES[device])

    def weights(of: torch.dtype) -> int:
        return math.ceil(parameters * of.itemsize / gpus)

    def total(of: torch.dtype) -> int:
        size = weights(of)
        # Spread over several GPUs, weights take a share of each at most.
        needed = math.ceil(size / WEIGHTS_SHARE) + base_bytes if gpus > 1 else 0
        return max(besides + size, needed)

    is_open = named == "auto" and dtype != torch.float32
    return MergedMemory(
        device=device,
        gpus=gpus,
        dtype=str(dtype).removeprefix("torch."),
        weights=weights(dtype),
        total=total(dtype),
        total_in_float32=total(torch.float32) if is_open else None,
    )
