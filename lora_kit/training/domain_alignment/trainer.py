"""Trainer of a head whose features are kept from telling two domains apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.data.batches import split_micro_batches
from lora_kit.data.supervision import Example
from lora_kit.modeling.head_inputs import last_positions, pick_of_head, recorded_inputs
from lora_kit.recipe.training import DomainAlignmentSpec
from lora_kit.training.domain_alignment.losses import (
    coral_loss,
    domain_classifier,
    domain_loss,
    reversal_strength,
    reversed_gradient,
)
from lora_kit.training.heads import HeadTrainer
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.steps import StepInputs
from lora_kit.training.target_texts import TargetTexts

# Examples with which the inputs of the head are found.
ROWS = 4
DOMAIN_LOSS = "domain_loss"
# Name of the domain classifier within the model while it trains.
CLASSIFIER = "domain_classifier"


class AlignedHeadTrainer(HeadTrainer):
    """Trainer of a head with as many texts of a target domain in each forward pass.

    The loss of a step has the gradient of the domains' loss, and the value of the rows' alone.

    Logged per step: `domain_loss`, the mean over its passes of `coral_loss`, or of the domain
    classifier's loss in nats.
    """

    logged_metrics = (DOMAIN_LOSS,)

    def __init__(self, *args: Any, inputs: TrainingInputs, **kwargs: Any):
        """Create the trainer; for `adversarial`, add the domain classifier to the model.

        Args:
            args: arguments of `HeadTrainer`.
            inputs: model, data, texts of the target and recipe.
            kwargs: keyword arguments of `HeadTrainer`.

        Raises:
            AdapterError: if the inputs of the head cannot be identified in this architecture.
        """
        spec, backbone = inputs.recipe.training.domain_alignment, inputs.backbone
        assert spec is not None  # asked for only with the section
        assert inputs.target is not None  # which the texts are read for
        assert backbone.head is not None  # and only of a head
        self._alignment: DomainAlignmentSpec = spec
        self._target: TargetTexts = inputs.target
        self._head = backbone.model.get_submodule(backbone.head.module)
        first = [one.input_ids for one in inputs.data.examples[:ROWS]]
        self._pick = pick_of_head(backbone, inputs.model, first)
        self._classifier = _add_classifier(inputs) if spec.method == "adversarial" else None
        self._measured: list[float] = []
        super().__init__(*args, inputs=inputs, **kwargs)

    def _tensors(self, examples: Sequence[Example]) -> list[StepInputs]:
        """Return passes with as many texts of the target as examples, after them."""
        rows, tokens = self.micro_batcher.rows // 2, self.micro_batcher.tokens
        groups = (
            [list(examples)]  # a covariance is that of the whole step
            if self._alignment.method == "coral"
            else split_micro_batches(examples, rows, tokens and tokens // 2)
        )
        seed, process = self.args.seed, self.args.process_index
        texts = iter(self._target.of_step(len(examples), seed, self.state.global_step, process))
        return [self._with_texts(group, [next(texts) for _ in group]) for group in groups]

    def _with_texts(self, group: Sequence[Example], texts: Sequence[Example]) -> StepInputs:
        batch = self.padded([*group, *texts])
        is_target = torch.arange(len(group) + len(texts)) >= len(group)
        return {**batch, "is_target": is_target}

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed weighted losses of one forward pass; scalar, float32.

        The loss of the domains, times the summed weights of the rows, adds to the gradient alone.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: tensors of the pass, with `is_target`, (batch,) bool.
        """
        with recorded_inputs(self._head) as recorded:
            losses = self.row_losses(model, inputs)
        hidden, last = recorded.pop(), last_positions(inputs["input_ids"], self._pad_token_id)
        features = self._pick(hidden, last).flatten(1).float()
        is_target = inputs["is_target"]
        aligned = self._domain_loss(features[~is_target], features[is_target])
        weights = self.task.loss.weight_of(inputs["targets"]) * inputs.get("row_weights", 1.0)
        loss: torch.Tensor = losses.sum() + weights.sum() * (aligned - aligned.detach())
        return loss

    def _domain_loss(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss whose gradient aligns two sets of features; scalar, float32."""
        if self._classifier is not None:
            progress = self.state.global_step / max(self.state.max_steps, 1)
            factor = self._alignment.weight * reversal_strength(progress)
            reversed_features = (reversed_gradient(one, factor) for one in (source, target))
            loss = domain_loss(self._classifier, *reversed_features)
            self._measured.append(loss.item())
            return loss
        if len(source) < 2:
            return source.sum() * 0  # the last step of an epoch: one row has no covariance
        loss = coral_loss(source, target)
        self._measured.append(loss.item())
        return self._alignment.weight * loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss of the domains with that of the rows."""
        if self._measured and "loss" in logs:
            logs = logs | {DOMAIN_LOSS: sum(self._measured) / len(self._measured)}
            self._measured.clear()
        super().log(logs, start_time)


def _add_classifier(inputs: TrainingInputs) -> torch.nn.Module:
    """Add a domain classifier to a model, with weights that depend on the recipe's seed alone."""
    hidden_size = inputs.backbone.model.config.get_text_config().hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs.recipe.seed)
        classifier = domain_classifier(hidden_size)
    classifier.to(inputs.backbone.model.device)
    inputs.model.add_module(CLASSIFIER, classifier)
    return classifier


def remove_classifier(model: torch.nn.Module) -> None:
    """Remove the domain classifier, which is of no use after the training."""
    if hasattr(model, CLASSIFIER):
        delattr(model, CLASSIFIER)
