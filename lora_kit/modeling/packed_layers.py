"""Linear layers with packed weights, for the few rows of a step of generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lora_kit.modeling.held_weights import HeldWeights

Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def packed_layers(model: torch.nn.Module, held: HeldWeights) -> Iterator[None]:
    """Compute the linear layers of a model with packed weights, and restore them on exit.

    Args:
        model: model in evaluation mode; gradients cannot be computed.
        held: weights that are held for the model.
    """
    changed: list[tuple[torch.nn.Module, Forward | None]] = []
    try:
        for module in model.modules():
            forward = _packed_forward(module, held)
            if forward is not None:
                changed.append((module, module.__dict__.get("forward")))
                module.forward = forward
        yield
    finally:
        for module, before in changed:
            del module.forward
            if before is not None:
                module.forward = before


def _packed_forward(layer: Any, held: HeldWeights) -> Forward | None:
    """Return the forward pass with a packed weight; `None` if the layer's own is as fast."""
    is_linear = type(layer) is torch.nn.Linear
    if layer not in held.dense and ("forward" in layer.__dict__ or not is_linear):
        return None
    packed = held.packed(layer)
    if packed is None:
        return None
    weight, bias = held.weight(layer), layer.bias
    assert weight is not None
    dtype = weight.dtype
    if bias is not None and bias.dtype != dtype:
        return None
    before = layer.forward
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dtype != dtype:
            output: torch.Tensor = before(inputs)
            return output
        product: torch.Tensor = multiply(inputs, packed, bias, "none", [], "")
        return product

    return forward
