"""What changes a step's gradients once they are added up, before they are clipped."""

from __future__ import annotations

from abc import ABC, abstractmethod

from transformers import TrainerCallback, TrainerState


class BeforeClipping(TrainerCallback, ABC):
    """Changes gradients while they weigh what they do in the loss.

    transformers asks its callbacks only after it has clipped: a penalty's gradient that is added
    then weighs more than the loss beside it, as often as the norm is over `max_grad_norm`.
    """

    @abstractmethod
    def change(self, state: TrainerState, scale: float) -> None:
        """Change the gradients, the same in all processes.

        Args:
            state: of the step that is under way.
            scale: what all gradients are multiplied with until they are clipped; 1 but in float16.
        """
