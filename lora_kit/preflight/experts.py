"""Fused experts: parameters of three dimensions, which targets of linear layers do not find."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch


def unadapted_fused_experts(model: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Yield name and number of weights of each frozen 3-D parameter without an adapter."""
    # PEFT wraps a module once for each of its parameters that it adapts.
    named = [(name.replace(".base_layer", ""), p) for name, p in model.named_parameters()]
    adapted = {re.split(r"\.lora_|\.ln_tuning_", n)[0] for n, p in named if p.requires_grad}
    for name, parameter in named:
        owner = name.rpartition(".")[0]
        if parameter.dim() == 3 and not parameter.requires_grad and owner not in adapted:
            yield name, parameter.numel()
