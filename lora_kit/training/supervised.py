"""Supervised trainer: TRL's SFTTrainer with the loss, batches and checkpoints of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl import SFTTrainer

from lora_kit.modeling.likelihood import logits_at, token_nll
from lora_kit.modeling.model_inputs import supervised_positions
from lora_kit.training.distillation import Teacher
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.steps import StepInputs, StepTrainer

if TYPE_CHECKING:
    from peft import PeftModel


class SupervisedTrainer(StepTrainer, SFTTrainer):
    """SFTTrainer that computes logits of supervised positions only.

    On a CPU, the loss of TRL 1.16 projects every position to the vocabulary.
    """

    def __init__(
        self,
        *args: Any,
        inputs: TrainingInputs,
        teacher: Teacher | None = None,
        **kwargs: Any,
    ):
        """Create the trainer.

        Args:
            args: arguments of `StepTrainer`.
            inputs: model, data and recipe.
            teacher: teacher of knowledge distillation.
            kwargs: keyword arguments of `StepTrainer`.
        """
        with _bare_head(inputs.model):
            super().__init__(*args, inputs=inputs, **kwargs)
        self._teacher = teacher
        self._head = inputs.model.get_output_embeddings()

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed losses of the supervised tokens of one forward pass; scalar, float32.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: result of `model_inputs.to_device`.
        """
        targets, rows, columns = supervised_positions(inputs)
        logits = logits_at(model, inputs, rows, columns, self._head)
        losses = token_nll(logits, targets)
        if self._teacher:
            losses = self._teacher.losses(losses, logits, inputs)
        return losses.sum()


@contextmanager
def _bare_head(model: PeftModel) -> Iterator[None]:
    """Hide an adapter on the output head from TRL 1.16, which refuses one.

    TRL's loss multiplies by the head's weight alone; `compute_loss` calls the head itself, adapter
    included. Trainable tokens of a tied embedding are such an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head: Any = model.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        yield
        return
    patched: Any = model
    patched.get_output_embeddings = head.get_base_layer
    try:
        yield
    finally:
        del patched.get_output_embeddings
