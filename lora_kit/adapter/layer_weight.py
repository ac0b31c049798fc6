"""Frozen weight of a LoRA layer, as its forward pass uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


def dequantized_weight(layer: LoraLayer) -> torch.Tensor:
    """Return a dequantized copy of the layer's frozen weight, float32.

    The shape is (out, in), also where the layer stores its weight transposed (GPT-2's Conv1D), and
    (tokens, dimensions) for an embedding.
    """
    from peft.utils.integrations import dequantize_module_weight

    base = layer.get_base_layer()
    stored: torch.Tensor = dequantize_module_weight(base)
    weight = stored.detach().float().clone()
    # PEFT sets the option of the adapter on each of its embeddings as well, where it means nothing.
    transposed = getattr(layer, "fan_in_fan_out", False) and not isinstance(
        base, torch.nn.Embedding
    )
    return weight.T.contiguous() if transposed else weight
