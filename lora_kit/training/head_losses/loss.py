"""Loss of a head, and the parts that several kinds share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from lora_kit.data.supervision import IGNORE_INDEX, Example


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


def focal(nll: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return (1 - p)^gamma times the negative log of p, of the same shape as the latter.

    Lin et al. 2017, arXiv:1708.02002, equation 4.

    Args:
        nll: -log p of what is right, float32.
        gamma: focusing parameter; 0 for cross-entropy.
    """
    if not gamma:
        return nll
    # For gamma < 1, the gradient of 0^gamma is infinite: a row with p = 1 would give NaN.
    uncertainty = (1 - (-nll).exp()).clamp(min=torch.finfo(torch.float32).tiny)
    return uncertainty**gamma * nll


def value_targets(examples: Sequence[Example], outputs: int) -> torch.Tensor:
    """Return the values of examples, (examples, outputs) float64; NaN for those without a label."""
    missing = (math.nan,) * outputs
    rows = [missing if one.labels[-1] == IGNORE_INDEX else one.targets for one in examples]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), outputs)
