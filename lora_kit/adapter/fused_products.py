"""Products of a LoRA layer and its frozen layer in one operation, for training on a CPU.

PEFT adds the low-rank product in operations of their own: a copy of the frozen layer's output, the
scaling and a sum, each of which reads and writes an activation of full width, forward and backward.
Here both products add to what the frozen layer's product wrote, as the gradients of the input do.
Weights in 4 bits are dequantized once a training instead of twice a pass if they are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lora_kit.modeling.adapter_layers import plain_adapter
from lora_kit.runtime.machine import main_memory
from lora_kit.runtime.processes import process_state

# Largest share of the machine's memory that dequantized weights are held in, by all processes: 212
# MB for 135M parameters in bfloat16, where dequantizing is a tenth of a step.
HELD_SHARE = 1 / 32
# State that a frozen layer in 4 bits has beside its bytes; `None` for a dense weight.
QuantState = Any


@contextmanager
def fused_products(model: Any) -> Iterator[None]:
    """Compute the LoRA layers of a model on a CPU with fewer passes over activations, until exit.

    Losses and gradients are the same within rounding, of which there is less. A pass without
    gradients and a layer with a variant (DoRA), dropout, several adapters or hooks take PEFT's way.

    Args:
        model: backbone with its adapter.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [one for one in model.modules() if isinstance(one, LoraLayer)]
    layers = [one for one in layers if _is_known(one.get_base_layer())]
    bases = [layer.get_base_layer() for layer in layers]
    in_4_bits = [base.in_features * base.out_features for base in bases if _state(base)]
    weights = _FrozenWeights(holds_dequantized(sum(in_4_bits), model.dtype))
    for layer in layers:
        layer.forward = partial(_forward, layer, weights)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def holds_dequantized(parameters: int, dtype: torch.dtype) -> bool:
    """Return true if weights in 4 bits are dequantized once and held while a CPU trains.

    Args:
        parameters: number of weights in 4 bits.
        dtype: compute dtype.
    """
    held: int = parameters * dtype.itemsize * process_state().num_processes
    return 0 < held <= HELD_SHARE * main_memory()


class _FrozenWeights:
    """Frozen weights as they are multiplied, (outputs, inputs)."""

    def __init__(self, held: bool):
        """Set up without weights.

        Args:
            held: if true, dequantized weights are kept.
        """
        self._held: dict[torch.nn.Module, torch.Tensor] | None = {} if held else None

    def of(self, base: Any) -> torch.Tensor:
        """Return the weight of a frozen layer, dequantized."""
        if not (state := _state(base)):
            weight: torch.Tensor = base.weight
            return weight
        if self._held is not None and base in self._held:
            return self._held[base]
        from bitsandbytes.functional import dequantize_4bit

        dense: torch.Tensor = dequantize_4bit(base.weight.view(-1, 1), state)
        if self._held is not None:
            self._held[base] = dense
        return dense


def _state(base: Any) -> QuantState:
    return getattr(base.weight, "quant_state", None)


def _is_known(base: Any) -> bool:
    from bitsandbytes.nn import Linear4bit

    if type(base) is not torch.nn.Linear and not isinstance(base, Linear4bit):
        return False
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    return frozen and base.weight.device.type == "cpu"


def _forward(
    layer: Any, weights: _FrozenWeights, x: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Return the output of a layer, (..., outputs), by the fused product if it can give it."""
    name = None if args or kwargs or not torch.is_grad_enabled() else _fusible_adapter(layer)
    base, dtype = layer.get_base_layer(), x.dtype
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    elif name is not None and layer.lora_A[name].weight.dtype != dtype:
        name = None
    stored = state.dtype if (state := _state(base)) else base.weight.dtype
    if name is None or x.dtype != dtype or stored != dtype or not x.numel():
        output: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    fused: torch.Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
        x, base, weights, a, b, layer.scaling[name]
    )
    return fused


def _fusible_adapter(layer: Any) -> str | None:
    """Return the only adapter of a layer if it is plain LoRA without dropout, or `None`."""
    name, base = plain_adapter(layer), layer.get_base_layer()
    if name is None or not isinstance(layer.lora_dropout[name], torch.nn.Identity):
        return None
    return None if base._forward_hooks or base._forward_pre_hooks else name


class _LoraProduct(torch.autograd.Function):
    """x W' + bias + scaling x A' B' and its gradients with respect to x, A and B.

    A and B are rounded to the dtype of x, as autocast does; their gradients are in their own dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: Any,
        weights: _FrozenWeights,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Take x (..., inputs), A (rank, inputs) and B (outputs, rank); return (..., outputs)."""
        rows = x.reshape(-1, x.shape[-1])
        down, up = a.to(x.dtype), b.to(x.dtype)
        hidden = (rows @ down.t()).mul_(scaling)
        output = rows @ weights.of(base).t()
        output.addmm_(hidden, up.t())
        if base.bias is not None:
            output.add_(base.bias.to(x.dtype))
        ctx.save_for_backward(rows, hidden, down, up)
        ctx.base, ctx.weights, ctx.scaling, ctx.trained = base, weights, scaling, a.dtype
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, A and B for that of the output, (..., outputs)."""
        rows, hidden, down, up = ctx.saved_tensors
        gradient = upstream[0].reshape(-1, upstream[0].shape[-1])
        of_hidden = (gradient @ up).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ ctx.weights.of(ctx.base)
            of_x.addmm_(of_hidden, down)
            of_x = of_x.view(*upstream[0].shape[:-1], -1)
        of_a = (of_hidden.t() @ rows).to(ctx.trained) if ctx.needs_input_grad[3] else None
        of_b = (gradient.t() @ hidden).to(ctx.trained) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_a, of_b, None
