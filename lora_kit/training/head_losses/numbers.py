"""Loss of a head that predicts numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import huber_loss

from lora_kit.data.supervision import Example
from lora_kit.recipe.regression import RegressionSpec
from lora_kit.training.head_losses.loss import value_targets


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
        values = value_targets(examples, len(self.scale))
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
