"""Loss of a head that predicts any number of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import logsigmoid

from lora_kit.data.supervision import Example
from lora_kit.modeling.model_inputs import send
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.training.head_losses.loss import focal, value_targets


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
        return value_targets(examples, len(self.weights)).float()

    def of_rows(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        assert logits.shape == targets.shape
        logits, right = logits.float(), targets.nan_to_num()
        # Of a label that a row does not have, the right decision has the logit with its sign
        # changed.
        nll = -logsigmoid((2 * right - 1) * logits)
        weights = torch.where(right > 0, send(self.weights, logits.device), 1.0)
        return self.weight_of(targets) * (weights * focal(nll, self.gamma)).mean(dim=1)

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        return (~targets.isnan().any(dim=1)).float()
