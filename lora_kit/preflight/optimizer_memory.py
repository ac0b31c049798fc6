"""Memory of an optimizer's state, by its name in transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from lora_kit.recipe.training import ADAMW, Optimizer

FLOAT32 = 4
# Values for each parameter: AdamW has two moments (Loshchilov & Hutter 2019, arXiv:1711.05101),
# AdEMAMix (Pagliardini et al. 2024, arXiv:2409.03137) a second first moment.
VALUES = {"ademamix": 3, "adam": 2, "lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0}
# bitsandbytes stores smaller tensors in float32, and a float32 constant for each block of others.
SMALLEST_IN_8_BITS, BLOCK = 4096, 256


def state_name(optim: Optimizer) -> str:
    """Return the name of an optimizer's state in an estimate."""
    return "AdamW moments" if optim in ADAMW else "optimizer state"


def state_bytes(optim: Optimizer, parameters: Iterable[torch.Tensor]) -> int:
    """Return the bytes of an optimizer's state; paged state counts as if it stayed on the GPU.

    Args:
        optim: name of the optimizer.
        parameters: trained parameters, of which only the shapes are read.
    """
    return sum(_bytes(optim, parameter) for parameter in parameters)


def _bytes(optim: Optimizer, parameter: torch.Tensor) -> int:
    if optim == "adafactor":
        # The second moment of a matrix is a sum for each row and column (arXiv:1804.04235).
        matrix = parameter.dim() >= 2
        return FLOAT32 * (sum(parameter.shape[-2:]) if matrix else parameter.numel())
    values = next(count for name, count in VALUES.items() if name in optim)
    if "8bit" not in optim or parameter.numel() < SMALLEST_IN_8_BITS:
        return FLOAT32 * values * parameter.numel()
    return values * (parameter.numel() + FLOAT32 * math.ceil(parameter.numel() / BLOCK))
