"""Copies of a model's trained weights on the CPU."""

from __future__ import annotations

import torch

from lora_kit.runtime.errors import TrainingError
from lora_kit.training.sharded import assign_full_tensor, full_shape, full_tensor

Tensors = dict[str, torch.Tensor]


def trained_weights(model: torch.nn.Module) -> Tensors:
    """Return full copies of all trained parameters on the CPU, by name; a collective call."""
    return {
        name: full_tensor(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def restore_weights(model: torch.nn.Module, weights: Tensors) -> None:
    """Copy weights of `trained_weights` back into the model; a collective call.

    Raises:
        TrainingError: if they are those of another adapter.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: full_shape(parameter) for name, parameter in trained.items()}
    restored = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if shapes != restored:
        different = sorted(dict(shapes.items() ^ restored.items()))
        raise TrainingError(
            f"checkpoint: the weights are those of another adapter (got {len(different)} tensors "
            f"of other names or shapes, first {different[0]}). Fix: restore the adapter's section "
            "of the recipe, or drop --resume"
        )
    for name, parameter in trained.items():
        assign_full_tensor(parameter, weights[name])
