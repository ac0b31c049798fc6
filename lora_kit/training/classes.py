"""Classifier training: loss over classes, and the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import split_micro_batches
from lora_kit.data.labelled import class_indices
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.features import Features, frozen_features
from lora_kit.modeling.model_inputs import send, to_device
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.steps import StepInputs, StepTrainer
from lora_kit.training.validation import shared_mean

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, eq=False)
class ClassLoss:
    """Weighted cross-entropy or focal loss.

    -w (1 - p)^gamma log p, where p is the probability of the true class and w its weight (Lin et
    al. 2017, arXiv:1708.02002, equation 5). The mean is weighted, as in torch's `cross_entropy`
    with a weight.

    Attributes:
        weights: weight of each class, (classes,) float32.
        gamma: focusing parameter; 0 for cross-entropy.
    """

    weights: torch.Tensor
    gamma: float = 0.0

    @classmethod
    def of(
        cls, spec: ClassificationSpec, classes: Sequence[str], targets: Sequence[int]
    ) -> ClassLoss:
        """Return the loss of a recipe.

        Args:
            spec: the recipe's section `classification`.
            classes: names of all classes.
            targets: class index of each training row; every class has a row.
        """
        from sklearn.utils.class_weight import compute_class_weight

        weights = compute_class_weight(
            spec.weights_of(classes), classes=np.arange(len(classes)), y=np.array(targets)
        )
        return cls(torch.tensor(weights, dtype=torch.float32), spec.focal_gamma)

    def sum(
        self, logits: torch.Tensor, targets: torch.Tensor, row_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the weighted sum of the losses of all rows, in nats; scalar, float32.

        Args:
            logits: (batch, classes), of any float dtype.
            targets: (batch,) int64; rows with target -100 have no loss.
            row_weights: (batch,) float32, weight of each row besides that of its class.
        """
        assert len(self.weights) == logits.shape[1]
        logits = logits.float()
        nll = cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
        weights = self.weight_of(targets)
        if row_weights is not None:
            weights = weights * row_weights
        if self.gamma:
            # For gamma < 1, the gradient of 0^gamma is infinite: a row with p = 1 would give NaN.
            uncertainty = (1 - (-nll).exp()).clamp(min=torch.finfo(torch.float32).tiny)
            nll = uncertainty**self.gamma * nll
        return (weights * nll).sum()

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weight of each row, (batch,) float32; 0 where the target is -100.

        Args:
            targets: (batch,) int64.
        """
        weights = send(self.weights, targets.device)
        return torch.where(targets == IGNORE_INDEX, 0.0, weights[targets.clamp(min=0)])


@dataclass(frozen=True, eq=False)
class ClassTask:
    """Loss of a classifier, and frozen features where only the head is trained.

    Attributes:
        loss: loss over classes.
        features: features of the training examples; `None` unless only the head is trained.
        held_out: features of the held-out examples; `None` likewise.
        row_weights: weight of training examples by their index, besides that of their class; 1
            for the others.
    """

    loss: ClassLoss
    features: Features | None = None
    held_out: Features | None = None
    row_weights: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: TrainingInputs) -> ClassTask | None:
        """Return the task of a recipe; `None` if its backbone has no head for classes.

        Raises:
            AdapterError: if the architecture provides no features on which to train the head alone.
        """
        backbone, model, held_out = inputs.backbone, inputs.model, inputs.held_out
        if backbone.head is None or backbone.head.is_reward:
            return None
        spec = inputs.recipe.classification or ClassificationSpec()
        loss = ClassLoss.of(spec, backbone.head.classes, class_indices(inputs.data))
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
            model: the classifier with its adapter.
            backbone: backbone of the model.
            data: held-out rows.
            max_tokens_per_batch: maximum tokens of a forward pass, padding included.
        """
        if data is None or not data.examples:
            return None
        if self.held_out is not None:
            batches = [self.held_out.batch(range(len(data.examples)), data.examples)]
        else:
            pad = backbone.tokenizer.pad_token_id
            groups = split_micro_batches(data.examples, len(data.examples), max_tokens_per_batch)
            batches = [_pad_classified(group, pad) for group in groups]

        def sums_of(batch: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
            batch = to_device(batch, backbone.model.device)
            weights = self.loss.weight_of(batch["targets"]).double()
            return self.loss.sum(_logits(model, batch), batch["targets"]), weights.sum()

        return shared_mean(model, batches, sums_of)


class ClassifierTrainer(StepTrainer):
    """transformers' Trainer for a classification head, with or without the backbone below it.

    Attributes:
        task: loss, and frozen features where only the head is trained.
    """

    def __init__(self, *args: Any, inputs: TrainingInputs, task: ClassTask, **kwargs: Any):
        """Create the trainer.

        Args:
            args: arguments of `StepTrainer`.
            inputs: model, data and recipe.
            task: loss, and frozen features where only the head is trained.
            kwargs: keyword arguments of `StepTrainer`.
        """
        super().__init__(*args, inputs=inputs, **kwargs)
        self.task = task
        if self.args.gradient_checkpointing:
            # transformers#42489: transformers does not do this for PEFT models.
            inputs.model.enable_input_require_grads()

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: StepInputs,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run forward and backward passes over this process's share of an optimizer step.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: this process's share, of `collate_share`.
            num_items_in_batch: ignored; the loss is normalized by class weights.

        Returns:
            Summed weighted losses of the share, divided by the summed weights of the step over all
            processes and multiplied by the number of processes; scalar, float32.
        """
        del num_items_in_batch
        examples = [
            replace(example, weight=self.task.row_weights.get(row, 1.0))
            for row, example in zip(inputs["rows"], inputs["examples"], strict=True)
        ]
        inputs = {**inputs, "examples": examples}
        targets = torch.tensor([example.labels[-1] for example in examples] or [IGNORE_INDEX])
        own = _row_weights(examples).get("row_weights", 1.0)
        weights = self.task.loss.weight_of(targets) * own
        weight = send(weights.sum(), self.args.device)
        total = self.accelerator.reduce(weight, reduction="sum")
        return super().training_step(model, inputs, total)

    def _passes(self, examples: Sequence[Example], model: torch.nn.Module) -> list[StepInputs]:
        if self.task.features is None:
            return super()._passes(examples, model)
        self.tokens += sum(len(example.input_ids) for example in examples)
        batch = self.task.features.batch(self.rows, examples)
        return [{**batch, **_row_weights(examples)}]

    def _tensors(self, examples: Sequence[Example]) -> list[StepInputs]:
        groups = split_micro_batches(examples, self.micro_batcher.rows, self.micro_batcher.tokens)
        return [_pad_classified(group, self._pad_token_id) for group in groups]

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed weighted losses of one forward pass; scalar, float32.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: tensors of the pass, of `_pad_classified` or `Features.batch`.
        """
        return self.task.loss.sum(
            _logits(model, inputs), inputs["targets"], inputs.get("row_weights")
        )


def _pad_classified(examples: Sequence[Example], pad_token_id: int) -> StepInputs:
    """Return `input_ids` and `attention_mask`, (batch, length), and `targets`, (batch,); int64.

    And `row_weights`, (batch,) float32, if the examples have weights of their own.
    """
    batch = pad_right([example.input_ids for example in examples], pad_token_id)
    targets = torch.tensor([example.labels[-1] for example in examples])
    return {**batch, "targets": targets, **_row_weights(examples)}


def _row_weights(examples: Sequence[Example]) -> StepInputs:
    """Return `row_weights`, (batch,) float32, or nothing to send where each weight is 1."""
    weights = [example.weight for example in examples]
    return {} if set(weights) <= {1.0} else {"row_weights": torch.tensor(weights)}


def _logits(model: Any, batch: StepInputs) -> torch.Tensor:
    """Return logits, (batch, classes), of the head alone if the batch has features."""
    if "head" in batch:
        logits: torch.Tensor = batch["head"](batch["features"])
    else:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits
    return logits
