"""Context managers that set a model's mode and restore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel


@contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Set a model to training or evaluation mode, and restore the mode of each module on exit."""
    # Modes differ within a model: a new PEFT model wraps a backbone in eval mode in training mode.
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def eval_mode(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Set a model to evaluation mode, and restore the mode of each module on exit."""
    return in_mode(model, training=False)


@contextmanager
def adapter_disabled(model: PeftModel) -> Iterator[PeftModel]:
    """Yield the model with the adapter disabled, and enable the adapter on exit."""
    with model.disable_adapter():
        yield model
