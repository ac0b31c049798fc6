"""The forward passes that a training makes, from the lengths of its examples alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.data.batches import cut
from lora_kit.data.tokenization import Example
from lora_kit.recipe.objective import PAIRED
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.arguments import micro_batch_size, share_of


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        start: the first example of its step.
        number: of the pass among those of its step.
        tokens: padding included.
    """

    start: int
    number: int
    tokens: int


@dataclass(frozen=True)
class MicroBatcher:
    """How one process's share of an optimizer step is cut into forward passes.

    Attributes:
        share: examples of a step.
        rows: most examples of a forward pass.
        tokens: most tokens of one, padding included, or `None`.
        packing: whether the examples of a pass stand behind one another in one row.
    """

    share: int
    rows: int
    tokens: int | None = None
    packing: bool = False

    @classmethod
    def of(cls, recipe: Recipe, processes: int, device: torch.device) -> MicroBatcher:
        """As the trainer cuts.

        Raises:
            TrainingError: if there are more processes than examples of a step.
        """
        spec, packing = recipe.training, recipe.data.packing
        # A pair goes through the model at once, both of its answers.
        each = 2 if spec.objective in PAIRED else 1
        micro = each * micro_batch_size(spec, processes, device)
        share = each * share_of(spec, processes)
        # A pack is bounded by its tokens, not by its examples.
        rows = share if packing else micro
        tokens = spec.max_tokens_per_batch or (recipe.data.max_length if packing else None)
        return cls(share, rows, tokens, packing)

    def passes(self, lengths: NDArray[np.int32]) -> list[Pass]:
        """Those of an epoch, in the order of the data: lengths are alike in the training's order.

        Args:
            lengths: tokens of each example, (examples,) int32.
        """
        made = []
        for start in range(0, len(lengths), self.share):
            step = [_of_length(length) for length in lengths[start : start + self.share].tolist()]
            for number, group in enumerate(self.cut(step)):
                made.append(Pass(start, number, self._tokens(group)))
        return made

    def most_tokens(self, lengths: NDArray[np.int32]) -> int:
        """Of a forward pass, padding included; a longer example has a pass to itself."""
        return self.tokens or self.rows * int(lengths.max())

    def read(self, one: Pass, examples: Sequence[Example]) -> list[Example]:
        """The examples of a pass; no others than those of its step are read."""
        return self.cut(examples[one.start : one.start + self.share])[one.number]

    def cut(self, step: Sequence[Example]) -> list[list[Example]]:
        """The forward passes of a step."""
        return cut(step, self.rows, self.tokens, self.packing)

    def _tokens(self, group: Sequence[Example]) -> int:
        lengths = [len(example.input_ids) for example in group]
        return sum(lengths) if self.packing else len(lengths) * max(lengths)


def _of_length(length: int) -> Example:
    """What stands for an example where only its length matters."""
    return Example(input_ids=(0,) * length, labels=())
