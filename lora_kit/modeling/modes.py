"""Context managers that set a model's mode and restore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and restore the mode of each module on exit."""
    # Modes differ within a model: a new PEFT model wraps a backbone in eval mode in training mode.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def adapter_disabled(model: PeftModel) -> Iterator[PeftModel]:
    """Yield the model with the adapter disabled, and enable the adapter on exit."""
    with model.disable_adapter():
        yield model
