"""Decisions on labels: a model with the threshold of each of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch


class Thresholded(torch.nn.Module):
    """Head with a threshold for each of its labels."""

    def __init__(self, model: torch.nn.Module, thresholds: Sequence[float], device: torch.device):
        """Create the model.

        Args:
            model: model that gives `logits`.
            thresholds: probability from which on a label is predicted.
            device: device of the logits.
        """
        super().__init__()
        self.model, self.config = model, model.config
        values = torch.tensor(thresholds, dtype=torch.float64, device=device)
        self.thresholds = torch.nn.Parameter(values, requires_grad=False)

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Return `logits`, (batch, labels), and `thresholds`, (labels,) float64.

        Args:
            batch: `input_ids` and `attention_mask`, each (batch, length), int64.
        """
        return SimpleNamespace(logits=self.model(**batch).logits, thresholds=self.thresholds)
