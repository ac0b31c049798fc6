"""Fused experts: parameters of three dimensions, which targets of linear layers do not find."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch


def fused_experts(model: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Names and weights of the frozen parameters of three dimensions without an adapter."""
    # An adapter stands around what it adapts, once for each parameter of it.
    named = [(name.replace(".base_layer", ""), p) for name, p in model.named_parameters()]
    adapted = {re.split(r"\.lora_|\.ln_tuning_", n)[0] for n, p in named if p.requires_grad}
    for name, parameter in named:
        owner = name.rpartition(".")[0]
        if parameter.dim() == 3 and not parameter.requires_grad and owner not in adapted:
            yield name, parameter.numel()


def weights_of(model: torch.nn.Module) -> int:
    """Weights of the backbone: those in 4 bits are packed, two in a byte."""
    packed = {id(m.weight) for m in model.modules() if hasattr(m, "compute_type_is_set")}
    return sum(
        p.numel() * (2 if id(p) in packed else 1) for p in model.parameters() if not p.requires_grad
    )
