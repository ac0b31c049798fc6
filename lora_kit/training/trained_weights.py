"""The trained weights of a model: copied to the CPU, and put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_kit.runtime.errors import TrainingError
from lora_kit.training.sharded import put_back, shape_of, whole

if TYPE_CHECKING:
    pass


Tensors = dict[str, torch.Tensor]


def trained_weights(model: torch.nn.Module) -> Tensors:
    """Copies of all that is trained, whole, on the CPU, by name; all processes ask together."""
    return {
        name: whole(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def restore_weights(model: torch.nn.Module, weights: Tensors) -> None:
    """Put `trained_weights` back.

    Raises:
        TrainingError: if they are those of another adapter.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: shape_of(parameter) for name, parameter in trained.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        raise TrainingError("the checkpoint's weights are those of another adapter")
    for name, parameter in trained.items():
        put_back(parameter, weights[name])
