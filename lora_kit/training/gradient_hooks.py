"""Hooks that modify a step's gradients before they are clipped."""

from __future__ import annotations

from abc import ABC, abstractmethod

from transformers import TrainerCallback, TrainerState


class GradientHook(TrainerCallback, ABC):
    """Callback that modifies the accumulated gradients of a step before they are clipped.

    transformers calls its callbacks only after clipping. The gradient of a penalty added then would
    be too large relative to the loss whenever the norm exceeds `max_grad_norm`.
    """

    @abstractmethod
    def modify_gradients(self, state: TrainerState, scale: float) -> None:
        """Modify the gradients in place, identically on all processes.

        Args:
            state: state at the current step.
            scale: factor on all gradients until they are clipped; 1 except in float16.
        """
