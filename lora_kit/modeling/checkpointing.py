"""Gradient checkpointing of a model, under the names of older and newer versions of transformers.

Newer ones call it activation checkpointing; 5.17, the oldest that this package runs with, does not.
"""

from __future__ import annotations

from typing import Any


def enable_checkpointing(model: Any, **options: Any) -> None:
    """Recompute the activations of each block in the backward pass.

    Args:
        model: a model of transformers, also wrapped by PEFT.
        options: keyword arguments of `torch.utils.checkpoint.checkpoint`.
    """
    _method(model, "enable")(options)


def disable_checkpointing(model: Any) -> None:
    """Keep activations for the backward pass."""
    _method(model, "disable")()


def is_checkpointing(model: Any) -> bool:
    """Return true if activations are recomputed."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _method(model: Any, action: str) -> Any:
    newer = getattr(model, f"activation_checkpointing_{action}", None)
    return newer or getattr(model, f"gradient_checkpointing_{action}")
