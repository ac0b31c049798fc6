"""Weights of a frozen model in the form that is multiplied fastest, while it is evaluated.

A 4-bit layer of bitsandbytes dequantizes its weight in every forward pass. Here the dequantized
weight is kept beside the packed one for as long as a `with` block lasts, if memory allows. On a CPU
a layer multiplies the same numbers by the same kernel either way, so that its outputs are equal bit
for bit; on a GPU, bitsandbytes has a kernel of its own for a single row, whose last digits differ.

Generation multiplies a few rows at a time by every weight. On a CPU, most of that time is spent on
bringing the weight into the order in which oneDNN reads it; `HeldWeights.packed` does that once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from lora_kit.runtime.available_memory import available_bytes

# Share of the available memory that held weights may take; the rest is for activations and caches.
HELD_SHARE = 0.5
_HELD = "lora_kit_held_weights"


@dataclass(frozen=True)
class PackedWeight:
    """Weight in oneDNN's own order.

    Attributes:
        source: address and version of the weight that was packed.
        packed: opaque tensor; (out, in) to torch.
    """

    source: tuple[int, int]
    packed: torch.Tensor


@dataclass
class HeldWeights:
    """Weights that are held for a model.

    Attributes:
        dense: dequantized weight (out, in) of each 4-bit layer; empty if memory does not allow it.
        packs: packed weights, made when first used.
        packed_bytes: bytes that packed weights may still take.
    """

    dense: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    packs: dict[torch.nn.Module, PackedWeight] = field(default_factory=dict)
    packed_bytes: int = 0

    def weight(self, layer: torch.nn.Module) -> torch.Tensor | None:
        """Return the weight (out, in) that a linear layer multiplies by; `None` for 4 bits."""
        if layer in self.dense:
            return self.dense[layer]
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        return weight.data if type(layer) is torch.nn.Linear else None

    def packed(self, layer: torch.nn.Module) -> torch.Tensor | None:
        """Return a layer's weight in oneDNN's order; `None` if it cannot be packed."""
        weight = self.weight(layer)
        if weight is None or not _is_packable(weight):
            return None
        own: Any = layer.weight
        source = (weight.data_ptr(), 0 if own.is_inference() else own._version)
        known = self.packs.get(layer)
        if known is None or known.source != source:
            if known is None and weight.nbytes > self.packed_bytes:
                return None
            self.packed_bytes -= weight.nbytes if known is None else 0
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
            known = self.packs[layer] = PackedWeight(source, packed)
        return known.packed


# Rows for which oneDNN chooses the order of a packed weight.
PACKED_ROWS = 16
# Elements from which a weight is packed: a call of oneDNN takes 14 us, as a smaller product does.
PACKED_ELEMENTS = 2**16


def _is_packable(weight: torch.Tensor) -> bool:
    """Return true if oneDNN multiplies by the weight on this machine; its operators are private."""
    if weight.device.type != "cpu" or weight.numel() < PACKED_ELEMENTS:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def inner_model(model: Any) -> Any:
    """Return the transformers model inside of a PEFT model; the model itself without PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def held_weights(model: Any) -> Iterator[HeldWeights]:
    """Hold a model's weights for the fastest products, and let them go on exit.

    A block within another one for the same model uses what the outer one holds.

    Args:
        model: model in evaluation mode, with or without an adapter; the weights stay as they are.
    """
    owner = inner_model(model)
    outer = owner.__dict__.get(_HELD)
    if outer is not None:
        yield outer
        return
    held = HeldWeights(_dequantized(owner))
    device = next(owner.parameters()).device
    held.packed_bytes = int(HELD_SHARE * available_bytes(device)) if device.type == "cpu" else 0
    owner.__dict__[_HELD] = held
    for layer, weight in held.dense.items():
        layer.forward = partial(_linear, layer, weight)
    try:
        yield held
    finally:
        for layer in held.dense:
            del layer.forward
        del owner.__dict__[_HELD]


def _linear(layer: Any, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Compute a 4-bit layer's forward pass with its dequantized weight."""
    if inputs.dtype != weight.dtype:
        output: torch.Tensor = type(layer).forward(layer, inputs)
        return output
    bias = None if layer.bias is None else layer.bias.to(weight.dtype)
    return torch.nn.functional.linear(inputs, weight, bias)


def _dequantized(model: torch.nn.Module) -> dict[torch.nn.Module, torch.Tensor]:
    """Return the dequantized weights of all 4-bit layers; none if they do not fit into memory."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    layers: list[Any] = [
        module
        for module in model.modules()
        # `forward` in the instance is a hook's, as accelerate's over several GPUs.
        if type(module) is Linear4bit and "forward" not in module.__dict__ and _is_plain(module)
    ]
    needed: dict[torch.device, int] = {}
    for layer in layers:
        state = layer.weight.quant_state
        size = state.shape.numel() * state.dtype.itemsize
        needed[layer.weight.device] = needed.get(layer.weight.device, 0) + size
    if any(size > HELD_SHARE * available_bytes(device) for device, size in needed.items()):
        return {}
    with torch.no_grad():
        return {
            layer: dequantize_4bit(layer.weight.data, layer.weight.quant_state) for layer in layers
        }


def _is_plain(layer: Any) -> bool:
    """Return true if a 4-bit layer computes in the dtype that its weight was quantized from."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None or getattr(state, "packing_format_for_cpu", False):
        return False
    return layer.compute_dtype in (None, state.dtype)
