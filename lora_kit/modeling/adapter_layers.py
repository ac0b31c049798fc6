"""Layers with LoRA, computed in fewer passes over their activations where no gradient is needed.

The layers' math is PEFT's, operation by operation; what is left out are copies and checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

Forward = Callable[[torch.Tensor], torch.Tensor]
# Rows that are computed at least in half precision: for fewer, MKL adds up products in float32 in
# another order, so that a token would depend on how many rows are generated with it.
LEAST_ROWS = 16


@contextmanager
def adapter_layers(model: torch.nn.Module) -> Iterator[None]:
    """Compute the LoRA layers of a model in evaluation mode with fewer passes, until exit.

    What is active on entry is computed: adapters must not be switched, scaled or merged within.
    Layers with a variant (DoRA), several adapters or a forward pass of their own take PEFT's way.

    Args:
        model: model with or without an adapter; gradients cannot be computed.
    """
    changed: list[torch.nn.Module] = []
    try:
        for module in model.modules():
            if (forward := _lora_forward(module)) is not None:
                module.forward = forward
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


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
    if layer.disable_adapters or not any(name in layer.lora_A for name in layer.active_adapters):
        return lambda inputs: base(inputs)
    name = plain_adapter(layer)
    if name is None or not getattr(layer, "cast_input_dtype_enabled", True):
        return None
    scaling, a, b = layer.scaling[name], layer.lora_A[name].weight, layer.lora_B[name].weight
    # PEFT's 4-bit layer rounds the adapter's output before it is added, its dense one after.
    rounds_first = type(layer) is LoraLinear4bit

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = base(inputs)
        change = linear(linear(_as_rows(inputs, a.dtype), a), b).mul_(scaling)
        if len(change) > len(inputs):
            change = change[: len(inputs)]
        if rounds_first or change.dtype == output.dtype:
            return output.add_(change.to(output.dtype))
        return (output + change).to(output.dtype)

    return forward


def plain_adapter(layer: Any) -> str | None:
    """Return the name of a LoRA layer's only active adapter, if it only multiplies by two factors.

    `None` for a merged or disabled layer, several adapters, a variant (DoRA) and factors with a
    bias, a hook or a forward pass of their own.
    """
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
        return None
    name = str(names[0])
    return name if _is_plain(layer.lora_A[name]) and _is_plain(layer.lora_B[name]) else None


def _is_plain(factor: Any) -> bool:
    """Return true for a linear layer that only multiplies: no bias, no hook, not offloaded."""
    if type(factor) is not torch.nn.Linear:
        return False  # such as AdaLoRA's parameters
    hooked = factor._forward_hooks or factor._forward_pre_hooks or "forward" in factor.__dict__
    return factor.bias is None and not hooked


def _as_rows(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return inputs (rows, ..., size) in a dtype; of half precision, with at least some rows."""
    if inputs.dtype == dtype or inputs.numel() >= LEAST_ROWS * inputs.shape[-1]:
        return inputs.to(dtype)
    padded = inputs.new_zeros((LEAST_ROWS, *inputs.shape[1:]), dtype=dtype)
    padded[: len(inputs)] = inputs
    return padded
