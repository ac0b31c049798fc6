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
from lora_kit.training.retention.entropy_weighting import entropy_weights
from lora_kit.training.retention_methods import RetentionMethods
from lora_kit.training.steps import StepInputs, StepTrainer

if TYPE_CHECKING:
    from peft import PeftModel


# Metrics of retention methods, as means over the supervised tokens of a step.
NON_TARGET_KL, ENTROPY_WEIGHT = "non_target_kl", "entropy_weight"


class SupervisedTrainer(StepTrainer, SFTTrainer):
    """SFTTrainer that computes logits of supervised positions only.

    On a CPU, the loss of TRL 1.16 projects every position to the vocabulary.
    """

    logged_metrics = (*StepTrainer.logged_metrics, NON_TARGET_KL, ENTROPY_WEIGHT)

    def __init__(
        self,
        *args: Any,
        inputs: TrainingInputs,
        retention: RetentionMethods,
        teacher: Teacher | None = None,
        **kwargs: Any,
    ):
        """Create the trainer.

        Args:
            args: arguments of `StepTrainer`.
            inputs: model, data and recipe.
            retention: retention methods.
            teacher: teacher of knowledge distillation.
            kwargs: keyword arguments of `StepTrainer`.
        """
        with _bare_head(inputs.model):
            super().__init__(*args, inputs=inputs, retention=retention, **kwargs)
        self._teacher = teacher
        self._non_target_kl = retention.non_target_kl
        self._entropy_weighting = retention.entropy_weighting
        requested = {NON_TARGET_KL: self._non_target_kl, ENTROPY_WEIGHT: self._entropy_weighting}
        # Sums over this process's supervised tokens of a step, then means over those of all.
        self._token_sums = {
            name: torch.zeros((), device=self.args.device) for name in requested if requested[name]
        }
        self._head = inputs.model.get_output_embeddings()

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: StepInputs,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run `StepTrainer.training_step`, and average the metrics of the retention methods."""
        for name, mean in self._token_sums.items():
            self._token_sums[name] = torch.zeros_like(mean)
        loss = super().training_step(model, inputs, num_items_in_batch)
        for name, total in self._token_sums.items():
            self._token_sums[name] = self.accelerator.reduce(total, "sum") / num_items_in_batch
        return loss

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed losses of the supervised tokens of one forward pass; scalar, float32.

        Its value leaves out weights and penalties of retention methods, so that runs with and
        without them can be compared; its gradient heeds them.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: result of `model_inputs.to_device`.
        """
        targets, rows, columns = supervised_positions(inputs)
        # Before the activations of the trained pass are in memory.
        base = self._non_target_kl.base_logits(inputs) if self._non_target_kl else None
        logits = logits_at(model, inputs, rows, columns, self._head)
        losses = token_nll(logits, targets)
        if self._teacher:
            losses = self._teacher.losses(losses, logits, inputs)
        if not self._token_sums:
            return losses.sum()
        trained = losses
        if self._entropy_weighting:
            weights = entropy_weights(logits, self._entropy_weighting.top_k)
            trained = weights * losses
            self._token_sums[ENTROPY_WEIGHT] += weights.sum()
        if self._non_target_kl and base is not None:
            divergences = self._non_target_kl.divergences(base, logits, targets)
            trained = trained + self._non_target_kl.weight * divergences
            self._token_sums[NON_TARGET_KL] += divergences.detach().sum()
        objective = trained.sum()
        return objective + (losses.sum() - objective).detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means over the step's supervised tokens with the other metrics."""
        super().log(logs | {n: float(mean) for n, mean in self._token_sums.items()}, start_time)


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
