"""Linear layer that gives the outputs of a head."""

from __future__ import annotations

import torch


def output_layer(head: torch.nn.Module, outputs: int) -> tuple[str, torch.nn.Linear]:
    """Return the name and the module of the linear layer that gives a head's outputs.

    Of a module that PEFT trains and of its original, the trained one.
    """
    layers = [
        (name, module)
        for name, module in head.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == outputs
    ]
    assert layers  # each head of transformers ends with one
    trained = [(name, one) for name, one in layers if one.weight.requires_grad]
    return (trained or layers)[-1]
