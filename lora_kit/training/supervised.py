"""The trainer of language: TRL's SFTTrainer with another loss, other batches, other checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl import SFTTrainer

from lora_kit.data.tokenization import IGNORED
from lora_kit.modeling.likelihood import logits_at, token_nll
from lora_kit.runtime.errors import TrainingError
from lora_kit.training.distillation import Teacher
from lora_kit.training.steps import Batch, StepTrainer

if TYPE_CHECKING:
    from peft import PeftModel


class SupervisedTrainer(StepTrainer, SFTTrainer):
    """SFTTrainer with logits only where scored.

    On a CPU the loss of TRL 1.16 projects every position to the vocabulary.
    """

    def __init__(self, *args: Any, model: PeftModel, teacher: Teacher | None = None, **kwargs: Any):
        """Take what `StepTrainer` takes, and whom it learns from besides."""
        with _bare_head(model):
            super().__init__(*args, model=model, **kwargs)
        self._teacher = teacher
        self._head = model.get_output_embeddings()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The share of one micro batch in the step's loss."""
        if return_outputs or num_items_in_batch is None:
            raise TrainingError("the loss is that of a step; its logits are never whole")
        targets = inputs["labels"][:, 1:]
        rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
        logits = logits_at(model, inputs, rows, columns, self._head)
        losses = token_nll(logits, targets[rows, columns])
        if self._teacher:
            losses = self._teacher.losses(losses, logits, inputs)
        loss: torch.Tensor = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return loss


@contextmanager
def _bare_head(model: PeftModel) -> Iterator[None]:
    """Show TRL 1.16 the output head without its adapter, which it refuses.

    TRL's loss multiplies with the head's weight alone; ours asks the head, adapter and all. Trained
    tokens of a tied embedding are such an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head: Any = model.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        yield
        return
    shown: Any = model
    shown.get_output_embeddings = head.get_base_layer
    try:
        yield
    finally:
        del shown.get_output_embeddings
