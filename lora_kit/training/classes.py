"""Training a classifier: the loss of a step over its classes, and the trainer that takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import reduce
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import cut
from lora_kit.data.labelled import classes_of
from lora_kit.data.prepared import PreparedData
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.modeling.features import Features, frozen_features
from lora_kit.modeling.likelihood import to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.processes import process_state
from lora_kit.training.steps import StepTrainer

if TYPE_CHECKING:
    from peft import PeftModel

Batch = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ClassLoss:
    """Weighted cross-entropy, or focal loss.

    -w (1 - p)^gamma log p, where p is the probability of the right class and w its weight (Lin et
    al. 2017, arXiv:1708.02002, equation 5). The mean is over weights, as torch's `cross_entropy`
    with a weight has it.

    Attributes:
        weights: (classes,) float32.
        gamma: 0 for cross-entropy.
    """

    weights: torch.Tensor
    gamma: float = 0.0

    @classmethod
    def of(
        cls, spec: ClassificationSpec, classes: Sequence[str], targets: Sequence[int]
    ) -> ClassLoss:
        """Of a recipe's section and the classes of its training rows, each of which has a row."""
        given, numbers = spec.class_weights, np.arange(len(classes))
        if isinstance(given, Mapping):
            weights = np.array([given.get(name, 1.0) for name in classes])
        else:
            how = "balanced" if given == "balanced" else None
            weights = compute_class_weight(how, classes=numbers, y=np.array(targets))
        return cls(torch.tensor(weights, dtype=torch.float32), spec.focal_gamma)

    def sum(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The weighted losses of all rows, nats.

        Args:
            logits: (batch, classes).
            targets: (batch,) int64; -100 counts nothing.
        """
        weights = self.weights.to(logits.device)
        logits = logits.float()
        nll = cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
        counted = self.weight_of(targets).to(logits.device)
        if self.gamma:
            # The gradient of 0^gamma is none where gamma < 1: a row that is certain counts nothing.
            left = (1 - (-nll).exp()).clamp(min=torch.finfo(torch.float32).tiny)
            nll = left**self.gamma * nll
        assert len(weights) == logits.shape[1]
        return (counted * nll).sum()

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """(batch,) float32, 0 where the target is -100."""
        weights = self.weights.to(targets.device)
        return torch.where(targets == IGNORED, 0.0, weights[targets.clamp(min=0)])


@dataclass(frozen=True, eq=False)
class ClassTask:
    """What a training of classes takes besides what all trainings do.

    Attributes:
        features: of the training examples, where the head alone is trained; else `None`.
        held_out: the same of the held-out ones.
    """

    loss: ClassLoss
    features: Features | None = None
    held_out: Features | None = None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        backbone: Backbone,
        model: PeftModel,
        data: PreparedData,
        held_out: PreparedData | None,
    ) -> ClassTask | None:
        """Of a recipe; `None` where its backbone has no head for classes.

        Raises:
            AdapterError: if the head alone cannot be trained on features of this architecture.
        """
        if backbone.head is None or backbone.head.is_reward:
            return None
        spec = recipe.classification or ClassificationSpec()
        loss = ClassLoss.of(spec, backbone.head.classes, classes_of(data))
        if recipe.adapter.method != "head":
            return cls(loss)
        has_rows = held_out is not None and len(held_out.examples)
        return cls(
            loss,
            frozen_features(backbone, model, data),
            frozen_features(backbone, model, held_out) if held_out and has_rows else None,
        )

    def validation_loss(
        self,
        model: PeftModel,
        backbone: Backbone,
        data: PreparedData | None,
        max_tokens_per_batch: int,
    ) -> float | None:
        """Mean loss of the held-out rows, as it is trained on; `None` without such rows.

        Several processes share the forward passes.

        Args:
            model: the classifier with its adapter.
            backbone: of the model.
            data: held-out rows.
            max_tokens_per_batch: most tokens of a forward pass, padding included.
        """
        if data is None or not data.examples:
            return None
        state = process_state()
        found = torch.zeros(2, dtype=torch.float64)
        with eval_mode(model), torch.no_grad():
            for batch in self._held_out(backbone, data, max_tokens_per_batch):
                logits = _logits(model, batch)
                found[0] += self.loss.sum(logits, batch["targets"]).double().cpu()
                found[1] += self.loss.weight_of(batch["targets"]).double().sum().cpu()
        total, weight = reduce(found.to(state.device)).tolist()
        return float(total / weight)

    def _held_out(
        self, backbone: Backbone, data: PreparedData, max_tokens_per_batch: int
    ) -> list[Batch]:
        if self.held_out is not None:
            return [self.held_out.batch(range(len(data.examples)), data.examples)]
        state, pad = process_state(), backbone.tokenizer.pad_token_id
        groups = cut(data.examples, len(data.examples), max_tokens_per_batch)
        own = groups[state.process_index :: state.num_processes]
        return [to_device(_padded(group, pad), state.device) for group in own]


class ClassifierTrainer(StepTrainer):
    """transformers' Trainer of a head for classes, with or without the backbone below it.

    Attributes:
        task: the loss, and features where the head alone is trained.
    """

    def __init__(
        self,
        *args: Any,
        model: PeftModel,
        task: ClassTask,
        micro_batch_size: int,
        max_tokens_per_batch: int | None,
        pad_token_id: int,
        **kwargs: Any,
    ):
        """Take what `StepTrainer` takes, and the task."""
        super().__init__(
            *args,
            model=model,
            micro_batch_size=micro_batch_size,
            max_tokens_per_batch=max_tokens_per_batch,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        self.task = task
        self._micro = partial(
            _class_batches,
            rows=micro_batch_size,
            tokens=max_tokens_per_batch,
            pad_token_id=pad_token_id,
        )
        if self.args.gradient_checkpointing:
            # transformers#42489: it does not do so itself for PEFT's models.
            model.enable_input_require_grads()

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward over this process's share of an optimizer step.

        Returns:
            The weighted losses over the sum of the weights of the whole step, of all processes.
        """
        del num_items_in_batch  # counts rows, not weights
        targets = torch.tensor([example.labels[-1] for example in inputs["examples"]] or [IGNORED])
        weight = self.task.loss.weight_of(targets).sum().to(self.args.device)
        total = self.accelerator.reduce(weight, reduction="sum")
        return super().training_step(model, inputs, total)

    def _passes(self, examples: Sequence[Example], model: torch.nn.Module) -> list[Batch]:
        if self.task.features is None:
            return super()._passes(examples, model)
        self.tokens += sum(len(example.input_ids) for example in examples)
        return [self.task.features.batch(self.rows, examples)]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The share of one micro batch in the step's loss; `num_items_in_batch` is its weight."""
        if return_outputs or num_items_in_batch is None:
            raise TrainingError("the loss is that of a step, which its weight has to be known for")
        total = self.task.loss.sum(_logits(model, inputs), inputs["targets"])
        loss: torch.Tensor = total / num_items_in_batch * self.accelerator.num_processes
        return loss


def _class_batches(
    examples: Sequence[Example], rows: int, tokens: int | None, pad_token_id: int
) -> list[Batch]:
    """Cut a step's examples into forward passes, the longest first."""
    return [_padded(group, pad_token_id) for group in cut(examples, rows, tokens)]


def _padded(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """`input_ids` and `attention_mask` (batch, length), and `targets` (batch,)."""
    batch = pad_right([example.input_ids for example in examples], pad_token_id)
    return {**batch, "targets": torch.tensor([example.labels[-1] for example in examples])}


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    """(batch, classes)."""
    if "head" in batch:
        logits: torch.Tensor = batch["head"](batch["features"])
        return logits
    whole: torch.Tensor = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits
    return whole
