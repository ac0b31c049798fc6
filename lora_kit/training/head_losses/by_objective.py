"""Loss of each objective that trains a head which reads a text."""

from __future__ import annotations

from collections.abc import Callable

from lora_kit.backbone.heads import Head
from lora_kit.data.head_targets import class_indices, target_matrix
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.recipe.objective import HeadObjective
from lora_kit.recipe.regression import RegressionSpec
from lora_kit.training.head_losses.classes import ClassLoss
from lora_kit.training.head_losses.labels import LabelLoss
from lora_kit.training.head_losses.loss import HeadLoss
from lora_kit.training.head_losses.numbers import NumberLoss
from lora_kit.training.head_losses.tags import TagLoss
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.output_layer import output_layer


def _head(inputs: TrainingInputs) -> Head:
    head = inputs.backbone.head
    assert head is not None  # only heads have such a loss
    return head


def _class_loss(inputs: TrainingInputs) -> HeadLoss:
    names = _head(inputs).outputs.names
    spec = inputs.recipe.classification or ClassificationSpec()
    return ClassLoss.of(spec, names, class_indices(inputs.data))


def _number_loss(inputs: TrainingInputs) -> HeadLoss:
    head, spec = _head(inputs), inputs.recipe.regression or RegressionSpec()
    module = inputs.backbone.model.get_submodule(head.module)
    has_bias = output_layer(module, len(head.outputs.names))[1].bias is not None
    return NumberLoss.of(spec, target_matrix(inputs.data), has_bias)


def _label_loss(inputs: TrainingInputs) -> HeadLoss:
    names = _head(inputs).outputs.names
    spec = inputs.recipe.multi_label or MultiLabelSpec()
    return LabelLoss.of(spec, names, target_matrix(inputs.data))


def _tag_loss(inputs: TrainingInputs) -> HeadLoss:
    return TagLoss(len(_head(inputs).outputs.names))


LOSSES: dict[HeadObjective, Callable[[TrainingInputs], HeadLoss]] = {
    "classification": _class_loss,
    "regression": _number_loss,
    "multi-label": _label_loss,
    "token-classification": _tag_loss,
}
