"""Loss of a head that predicts a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.model_inputs import send
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.training.head_losses.loss import focal


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
        return weights * focal(nll, self.gamma)

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """See `HeadLoss`."""
        weights = send(self.weights, targets.device)
        return torch.where(targets == IGNORE_INDEX, 0.0, weights[targets.clamp(min=0)])
