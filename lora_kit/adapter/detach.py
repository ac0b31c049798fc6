"""Detaching of an adapter from its backbone, which another adapter can then be attached to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lora_kit.backbone.load import Backbone

# For each weight by its name: shape, dtype, device, and the sum of its bytes.
ModelState = Mapping[str, tuple[torch.Size, torch.dtype, torch.device, int]]


def model_state(model: torch.nn.Module) -> ModelState:
    """Return a description of all weights by which changes are seen."""
    return {
        name: (tensor.shape, tensor.dtype, tensor.device, _byte_sum(tensor))
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def _byte_sum(tensor: torch.Tensor) -> int:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return int(data.sum(dtype=torch.int64))


def detach(model: Any, backbone: Backbone, before: ModelState) -> bool:
    """Take an adapter off, and return true if the backbone is as it was before.

    Some methods change the backbone's weights, or cannot be taken off.

    Args:
        model: backbone with an adapter attached.
        backbone: the backbone.
        before: state of the backbone's model before the adapter was attached.
    """
    try:
        model.unload()
    except (AttributeError, NotImplementedError, ValueError):
        return False
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    return model_state(backbone.model) == before
