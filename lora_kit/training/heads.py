"""Training of a head that reads a text: its task, and the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import split_micro_batches
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import Example
from lora_kit.modeling.features import Features, frozen_features
from lora_kit.modeling.model_inputs import to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.training.head_losses.by_objective import LOSSES
from lora_kit.training.head_losses.loss import HeadLoss
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.steps import StepInputs
from lora_kit.training.validation import shared_mean
from lora_kit.training.weighed_steps import WeighedStepTrainer

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, eq=False)
class HeadTask:
    """Loss of a head, and frozen features where only the head is trained.

    Attributes:
        loss: loss of the targets.
        features: features of the training examples; `None` unless only the head is trained.
        held_out: features of the held-out examples; `None` likewise.
        row_weights: weight of training examples by their index, besides that of their target; 1
            for the others.
    """

    loss: HeadLoss
    features: Features | None = None
    held_out: Features | None = None
    row_weights: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: TrainingInputs) -> HeadTask | None:
        """Return the task of a recipe; `None` if its backbone has no head that reads a text.

        Raises:
            AdapterError: if the architecture provides no features on which to train the head alone.
        """
        backbone, model, held_out = inputs.backbone, inputs.model, inputs.held_out
        if backbone.head is None or backbone.head.kind not in LOSSES:
            return None
        loss = LOSSES[backbone.head.kind](inputs)
        if inputs.recipe.adapter.method != "head":
            return cls(loss, row_weights=inputs.row_weights)
        has_rows = held_out is not None and len(held_out.examples)
        return cls(
            loss,
            frozen_features(backbone, model, inputs.data),
            frozen_features(backbone, model, held_out) if held_out and has_rows else None,
            inputs.row_weights,
        )

    def validation_loss(
        self,
        model: PeftModel,
        backbone: Backbone,
        data: PreparedData | None,
        max_tokens_per_batch: int,
    ) -> float | None:
        """Return the mean training loss of the held-out rows; `None` without such rows.

        The forward passes are shared between the processes.

        Args:
            model: the head with its backbone and adapter.
            backbone: backbone of the model.
            data: held-out rows.
            max_tokens_per_batch: maximum tokens of a forward pass, padding included.
        """
        if data is None or not data.examples:
            return None

        def sums_of(batch: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
            batch = to_device(batch, backbone.model.device)
            weights = self.loss.weight_of(batch["targets"]).double()
            losses = self.loss.of_rows(_logits(model, batch), batch["targets"])
            return losses.sum(), weights.sum()

        batches = self._held_out_batches(backbone, data, max_tokens_per_batch)
        return shared_mean(model, batches, sums_of)

    def held_out_outputs(
        self, model: PeftModel, backbone: Backbone, data: PreparedData, max_tokens_per_batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and targets of the held-out rows, (rows, outputs) float64 on the CPU each.

        The rows are in an order of their own.

        Args:
            model: the head with its backbone and adapter.
            backbone: backbone of the model.
            data: held-out rows, at least one.
            max_tokens_per_batch: maximum tokens of a forward pass, padding included.
        """
        batches = self._held_out_batches(backbone, data, max_tokens_per_batch)
        with eval_mode(model), torch.no_grad():
            logits = [_logits(model, to_device(one, backbone.model.device)) for one in batches]
        targets = torch.cat([one["targets"] for one in batches])
        return torch.cat(logits).double().cpu(), targets.double().cpu()

    def _held_out_batches(
        self, backbone: Backbone, data: PreparedData, max_tokens_per_batch: int
    ) -> list[StepInputs]:
        if self.held_out is not None:
            rows = range(len(data.examples))
            return [self.held_out.batch(rows, self.loss.targets(data.examples))]
        groups = split_micro_batches(data.examples, len(data.examples), max_tokens_per_batch)
        return [self.padded(group, backbone.tokenizer.pad_token_id) for group in groups]

    def padded(self, examples: Sequence[Example], pad_token_id: int) -> StepInputs:
        """Return the tensors of a forward pass.

        Args:
            examples: examples of the pass.
            pad_token_id: token that fills shorter rows.

        Returns:
            `input_ids` and `attention_mask`, (batch, length) int64, and `targets`; `row_weights`,
            (batch,) float32, if the examples have weights of their own.
        """
        batch = pad_right([example.input_ids for example in examples], pad_token_id)
        return {**batch, "targets": self.loss.targets(examples), **_row_weights(examples)}


class HeadTrainer(WeighedStepTrainer):
    """transformers' Trainer for a head that reads a text, with or without the backbone below it.

    Attributes:
        task: loss, and frozen features where only the head is trained.
    """

    def __init__(self, *args: Any, inputs: TrainingInputs, task: HeadTask, **kwargs: Any):
        """Create the trainer.

        Args:
            args: arguments of `WeighedStepTrainer`.
            inputs: model, data and recipe.
            task: loss, and frozen features where only the head is trained.
            kwargs: keyword arguments of `WeighedStepTrainer`.
        """
        super().__init__(*args, inputs=inputs, **kwargs)
        self.task = task

    def for_step(self, example: Example, row: int) -> Example:
        """Return an example with its weight."""
        return replace(example, weight=self.task.row_weights.get(row, 1.0))

    def weight_of(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the summed weights of the targets, times those of the rows."""
        own = torch.tensor([example.weight for example in examples])
        return (self.task.loss.weight_of(self.task.loss.targets(examples)) * own).sum()

    def padded(self, examples: Sequence[Example]) -> StepInputs:
        """Return the tensors of a forward pass, of `HeadTask.padded`."""
        return self.task.padded(examples, self._pad_token_id)

    def _passes(self, examples: Sequence[Example], model: torch.nn.Module) -> list[StepInputs]:
        if self.task.features is None:
            return super()._passes(examples, model)
        self.tokens += sum(len(example.input_ids) for example in examples)
        targets = self.task.loss.targets(examples)
        batch = self.task.features.batch(self.rows, targets)
        return [{**batch, **_row_weights(examples)}]

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed weighted losses of one forward pass; scalar, float32.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: tensors of the pass, of `HeadTask.padded` or `Features.batch`.
        """
        return self.row_losses(model, inputs).sum()

    def row_losses(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the weighted loss of each row of a forward pass, (batch,) float32."""
        losses = self.task.loss.of_rows(_logits(model, inputs), inputs["targets"])
        weights: torch.Tensor | float = inputs.get("row_weights", 1.0)
        return losses * weights


def _row_weights(examples: Sequence[Example]) -> StepInputs:
    """Return `row_weights`, (batch,) float32, or nothing to send where each weight is 1."""
    weights = [example.weight for example in examples]
    return {} if set(weights) <= {1.0} else {"row_weights": torch.tensor(weights)}


def _logits(model: Any, batch: StepInputs) -> torch.Tensor:
    """Return logits, (batch, outputs), of the head alone if the batch has features."""
    if "head" in batch:
        logits: torch.Tensor = batch["head"](batch["features"])
    else:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits
    return logits
