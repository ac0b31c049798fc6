"""Loss of a head that predicts a tag for each word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from lora_kit.data.supervision import IGNORE_INDEX, Example


@dataclass(frozen=True)
class TagLoss:
    """Cross-entropy of the tags, in nats, mean over words.

    A target is a row of the tags' indices, -100 where a token is not the first of a word.

    Attributes:
        tags: number of tags.
    """

    tags: int

    @property
    def chance(self) -> float:
        """Mean loss of a uniform guess."""
        return math.log(self.tags)

    @property
    def in_nats(self) -> bool:
        """True: the loss is in nats."""
        return True

    def targets(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the labels of examples, (examples, length) int64, padded on the right."""
        length = max((len(example.labels) for example in examples), default=0)
        rows = [
            [*example.labels, *[IGNORE_INDEX] * (length - len(example.labels))]
            for example in examples
        ]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)

    def of_rows(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of the words of each row, (batch,) float32.

        Args:
            logits: (batch, length, tags), of any float dtype.
            targets: (batch, length) int64.
        """
        assert logits.shape == (*targets.shape, self.tags)
        nll = cross_entropy(
            logits.float().transpose(1, 2), targets, reduction="none", ignore_index=IGNORE_INDEX
        )
        return nll.sum(dim=1)

    def weight_of(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the number of words of each row, (batch,) float32."""
        return (targets != IGNORE_INDEX).sum(dim=1).float()
