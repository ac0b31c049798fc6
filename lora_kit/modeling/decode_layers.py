"""Linear layers with and without LoRA, computed with fewer calls while tokens are generated.

A step of generation computes a few rows, so that calls take as long as products. The layers' math
is theirs, operation by operation; what is left out are checks and conversions that change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

from lora_kit.modeling.held_weights import HeldWeights

Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def decode_layers(model: torch.nn.Module, held: HeldWeights) -> Iterator[None]:
    """Compute the linear layers of a model for few rows, and restore them on exit.

    Layers of other kinds, or with other inputs than a tensor, stay as they are.

    Args:
        model: model in evaluation mode; gradients cannot be computed.
        held: weights that are held for the model.
    """
    changed: list[tuple[torch.nn.Module, Forward | None]] = []
    try:
        for module in model.modules():
            forward = _lora_forward(module) or _linear_forward(module, held)
            if forward is not None:
                changed.append((module, module.__dict__.get("forward")))
                module.forward = forward
        yield
    finally:
        for module, before in changed:
            del module.forward
            if before is not None:
                module.forward = before


def _linear_forward(layer: Any, held: HeldWeights) -> Forward | None:
    """Return the forward pass with a packed weight; `None` if the layer's own is as fast."""
    if layer not in held.dense and ("forward" in layer.__dict__ or not _is_linear(layer)):
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


def _is_linear(layer: Any) -> bool:
    return type(layer) is torch.nn.Linear


def _lora_forward(layer: Any) -> Forward | None:
    """Return the forward pass of a layer with one LoRA adapter, or with a disabled one.

    `None` for other layers, such as those with DoRA, with several adapters or with a merged one.
    """
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

    if type(layer) not in (LoraLinear, LoraLinear4bit) or "forward" in layer.__dict__:
        return None
    base = layer.base_layer
    if layer.merged or layer.training:
        return None
    if layer.disable_adapters:
        return lambda inputs: base(inputs)
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active:
        return lambda inputs: base(inputs)
    if (
        len(active) > 1
        or active[0] in layer.lora_variant
        or not getattr(layer, "cast_input_dtype_enabled", True)
    ):
        return None
    down, up = layer.lora_A[active[0]], layer.lora_B[active[0]]
    if not (_is_linear(down) and _is_linear(up) and down.bias is None and up.bias is None):
        return None
    scaling, a, b = layer.scaling[active[0]], down.weight, up.weight
    # PEFT's 4-bit layer rounds the adapter's output before it is added, its dense one after.
    rounds_first = type(layer) is LoraLinear4bit

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = base(inputs)
        change = linear(linear(inputs.to(a.dtype), a), b).mul_(scaling)
        if rounds_first or change.dtype == output.dtype:
            return output.add_(change.to(output.dtype))
        return (output + change).to(output.dtype)

    return forward
