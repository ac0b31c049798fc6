"""Losses of heads that read a text, one class for each kind of target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, huber_loss, logsigmoid

from lora_kit.data.head_targets import class_indices, target_matrix
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.model_inputs import send
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.recipe.objective import HeadObjective
from lora_kit.recipe.regression import RegressionSpec
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.tag_loss import TagLoss


class HeadLoss(Protocol):
    """Loss of a head; the mean over rows is weighted, as in torch's losses with a weight."""

    @property
    def chance(self) -> float:
        """Largest mean loss of a batch for a head that has learned nothing."""
        ...

    @property
    def in_nats(self) -> bool:
        """True if the loss is in nats."""
        ...

    def targets(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the targets of examples, (examples,), (examples, outputs) or (examples, length).

        An example without a label, which fills up a step, has a target without a loss.
        """
        ...

    def of_rows(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row times `weight_of` it, (batch,) float32.

        Args:
            logits: (batch, outputs), or (batch, length, outputs) for tags, of any float dtype.
            targets: targets of the rows.
        """
        ...

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weight of each row, (batch,) float32; 0 for a target without a loss.

        The weight of a row with tags is the number of its words.
        """
        ...


@dataclass(frozen=True, eq=False)
class ClassLoss:
    """Weighted cross-entropy or focal loss, in nats.

    -w (1 - p)^gamma log p, where p is the probability of the true class and w its weight (Lin et
    al. 2017, arXiv:1708.02002, equation 5). A target is the index of a class, -100 for none.

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

    @property
    def chance(self) -> float:
        """See `HeadLoss`; that of a uniform guess."""
        return math.log(len(self.weights))

    @property
    def in_nats(self) -> bool:
        """See `HeadLoss`."""
        return True

    def targets(self, examples: Sequence[Example]) -> torch.Tensor:
        """See `HeadLoss`; (examples,) int64."""
        return torch.tensor([example.labels[-1] for example in examples], dtype=torch.int64)

    def of_rows(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        assert len(self.weights) == logits.shape[1]
        logits = logits.float()
        nll = cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
        weights = self.weight_of(targets)
        if self.gamma:
            # For gamma < 1, the gradient of 0^gamma is infinite: a row with p = 1 would give NaN.
            uncertainty = (1 - (-nll).exp()).clamp(min=torch.finfo(torch.float32).tiny)
            nll = uncertainty**self.gamma * nll
        return weights * nll

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        weights = send(self.weights, targets.device)
        return torch.where(targets == IGNORE_INDEX, 0.0, weights[targets.clamp(min=0)])


@dataclass(frozen=True, eq=False)
class NumberLoss:
    """Halved squared error or Huber loss of standardised numbers, mean over the outputs.

    A target is a row of numbers in their own unit, NaN for none.

    Attributes:
        location: number that is standardised to 0, for each output, (outputs,) float64.
        scale: standard deviation of each output, (outputs,) float64.
        delta: error from which on the loss is linear, in standard deviations; infinite for mse.
        farthest: largest loss of a training row for the mean of all rows.
    """

    location: NDArray[np.float64]
    scale: NDArray[np.float64]
    delta: float = math.inf
    farthest: float = math.inf

    @classmethod
    def of(
        cls, spec: RegressionSpec, targets: NDArray[np.float64], has_bias: bool = True
    ) -> NumberLoss:
        """Return the loss of a recipe.

        Args:
            spec: the recipe's section `regression`.
            targets: (rows, outputs) float64, numbers of the training rows.
            has_bias: false for a head without a bias, such as that of a decoder. It cannot add the
                mean to its outputs, so that numbers are divided by their deviation alone.
        """
        mean, deviation = targets.mean(axis=0), targets.std(axis=0)
        return cls(
            mean if has_bias else np.zeros_like(mean),
            deviation,
            spec.huber_delta if spec.loss == "huber" else math.inf,
            float(0.5 * (((targets - mean) / deviation) ** 2).mean(axis=1).max()),
        )

    @property
    def chance(self) -> float:
        """See `HeadLoss`; that of the mean of all rows on the row where it is farthest off."""
        return self.farthest

    @property
    def in_nats(self) -> bool:
        """See `HeadLoss`."""
        return False

    def targets(self, examples: Sequence[Example]) -> torch.Tensor:
        """See `HeadLoss`; (examples, outputs) float32, standardised."""
        values = _value_targets(examples, len(self.scale))
        location, scale = torch.from_numpy(self.location), torch.from_numpy(self.scale)
        return ((values - location) / scale).float()

    def of_rows(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        assert logits.shape == targets.shape
        errors = logits.float() - targets.nan_to_num()
        if math.isinf(self.delta):
            losses = 0.5 * errors.square()
        else:
            losses = huber_loss(
                errors, torch.zeros_like(errors), reduction="none", delta=self.delta
            )
        return self.weight_of(targets) * losses.mean(dim=1)

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        return (~targets.isnan().any(dim=1)).float()


@dataclass(frozen=True, eq=False)
class LabelLoss:
    """Mean over the labels of the binary cross-entropy or focal loss, in nats.

    -w (1 - p)^gamma log p, where p is the probability of the right decision on a label and w is
    the label's weight for a row that has it, else 1 (Lin et al. 2017, arXiv:1708.02002, equation
    5). A target is a row of 1 and 0, NaN for none.

    Attributes:
        weights: weight of the rows that have a label, for each label, (labels,) float32.
        gamma: focusing parameter; 0 for cross-entropy.
    """

    weights: torch.Tensor
    gamma: float = 0.0

    @classmethod
    def of(
        cls, spec: MultiLabelSpec, labels: Sequence[str], targets: NDArray[np.float64]
    ) -> LabelLoss:
        """Return the loss of a recipe.

        Args:
            spec: the recipe's section `multi_label`.
            labels: names of all labels.
            targets: (rows, labels) float64, targets of the training rows; no label is in all rows
                or in none.
        """
        if spec.positive_weights == "balanced":
            having = targets.sum(axis=0)
            weights = ((len(targets) - having) / having).tolist()
        elif spec.positive_weights == "none":
            weights = [1.0] * len(labels)
        else:
            weights = [float(spec.positive_weights.get(name, 1.0)) for name in labels]
        return cls(torch.tensor(weights, dtype=torch.float32), spec.focal_gamma)

    @property
    def chance(self) -> float:
        """See `HeadLoss`; that of a probability of one half."""
        return math.log(2) * max(1.0, float(self.weights.max()))

    @property
    def in_nats(self) -> bool:
        """See `HeadLoss`."""
        return True

    def targets(self, examples: Sequence[Example]) -> torch.Tensor:
        """See `HeadLoss`; (examples, labels) float32."""
        return _value_targets(examples, len(self.weights)).float()

    def of_rows(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        assert logits.shape == targets.shape
        logits, right = logits.float(), targets.nan_to_num()
        # Of a label that a row does not have, the right decision has the logit with its sign
        # changed.
        nll = -logsigmoid((2 * right - 1) * logits)
        weights = torch.where(right > 0, send(self.weights, logits.device), 1.0)
        if self.gamma:
            # For gamma < 1, the gradient of 0^gamma is infinite: a row with p = 1 would give NaN.
            uncertainty = (1 - (-nll).exp()).clamp(min=torch.finfo(torch.float32).tiny)
            nll = uncertainty**self.gamma * nll
        return self.weight_of(targets) * (weights * nll).mean(dim=1)

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        return (~targets.isnan().any(dim=1)).float()


def _value_targets(examples: Sequence[Example], outputs: int) -> torch.Tensor:
    """Return the values of examples, (examples, outputs) float64; NaN for those without a label."""
    missing = (math.nan,) * outputs
    rows = [missing if one.labels[-1] == IGNORE_INDEX else one.targets for one in examples]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), outputs)


def has_bias(head: torch.nn.Module, outputs: int) -> bool:
    """Return true if a head adds a bias to its outputs."""
    return output_layer(head, outputs)[1].bias is not None


def output_layer(head: torch.nn.Module, outputs: int) -> tuple[str, torch.nn.Linear]:
    """Return the name and the module of the linear layer that gives a head's outputs.

    Of a module that PEFT trains and of its original, the trained one.
    """
    layers = [
        (name, module)
        for name, module in head.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == outputs
    ]
    assert layers  # each head of transformers ends with one
    trained = [(name, one) for name, one in layers if one.weight.requires_grad]
    return (trained or layers)[-1]


def _class_loss(inputs: TrainingInputs) -> HeadLoss:
    head = inputs.backbone.head
    assert head is not None  # only heads have such a loss
    spec = inputs.recipe.classification or ClassificationSpec()
    return ClassLoss.of(spec, head.outputs.names, class_indices(inputs.data))


def _number_loss(inputs: TrainingInputs) -> HeadLoss:
    head = inputs.backbone.head
    assert head is not None  # only heads have such a loss
    spec = inputs.recipe.regression or RegressionSpec()
    module = inputs.backbone.model.get_submodule(head.module)
    return NumberLoss.of(
        spec, target_matrix(inputs.data), has_bias(module, len(head.outputs.names))
    )


def _label_loss(inputs: TrainingInputs) -> HeadLoss:
    head = inputs.backbone.head
    assert head is not None  # only heads have such a loss
    spec = inputs.recipe.multi_label or MultiLabelSpec()
    return LabelLoss.of(spec, head.outputs.names, target_matrix(inputs.data))


def _tag_loss(inputs: TrainingInputs) -> HeadLoss:
    head = inputs.backbone.head
    assert head is not None  # only heads have such a loss
    return TagLoss(len(head.outputs.names))


LOSSES: dict[HeadObjective, Callable[[TrainingInputs], HeadLoss]] = {
    "classification": _class_loss,
    "regression": _number_loss,
    "multi-label": _label_loss,
    "token-classification": _tag_loss,
}
