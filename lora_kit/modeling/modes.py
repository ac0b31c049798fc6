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
    """Evaluation mode, and the mode that each module was in again whatever happens inside."""
    # A new PEFT model is in training mode around a backbone that is not.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def adapter_disabled(model: PeftModel) -> Iterator[PeftModel]:
    """The base: the adapter off, and on again whatever happens inside."""
    with model.disable_adapter():
        yield model
