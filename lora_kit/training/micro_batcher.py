"""Division of optimizer steps into forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lora_kit.backbone.attention import WITH_LENGTHS
from lora_kit.data.batches import resolve_packing, split_micro_batches
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.model_inputs import pack_examples, pad_examples
from lora_kit.recipe.objective import OF_SEVERAL_TEXTS
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.step_sizes import max_examples_per_process, micro_batch_size


@dataclass(frozen=True)
class ForwardPass:
    """Position and size of one forward pass.

    Attributes:
        start: index of the first example of its step.
        number: index of the pass within its step.
        tokens: number of tokens, padding included.
    """

    start: int
    number: int
    tokens: int


@dataclass(frozen=True)
class MicroBatcher:
    """Division of one process's share of an optimizer step into forward passes.

    Attributes:
        share: maximum examples of a step on this process.
        rows: maximum examples of a forward pass.
        tokens: maximum tokens of a forward pass, padding included; `None` for no limit.
        packing: if true, the examples of a pass are packed into one row.
        unpadded: if true, a pack is as large as the padded rows of a pass without their padding,
            and needs no mask.
    """

    share: int
    rows: int
    tokens: int | None = None
    packing: bool = False
    unpadded: bool = False

    @classmethod
    def of(
        cls, recipe: Recipe, processes: int, device: torch.device, attention: str
    ) -> MicroBatcher:
        """Return the division that the recipe's training uses.

        Args:
            recipe: the recipe.
            processes: number of processes of the training.
            device: device of the training.
            attention: attention implementation of the backbone there.

        Raises:
            TrainingError: if there are more processes than examples in a step.
        """
        spec, packing = recipe.training, resolve_packing(recipe, attention, device.type)
        filled = packing is True
        # Both texts of a pair go through the model in one pass, as does a text of the target with
        # each row.
        of_two = spec.objective in OF_SEVERAL_TEXTS or spec.domain_alignment is not None
        each = 2 if of_two else 1
        micro = each * micro_batch_size(spec, processes, device)
        share = each * max_examples_per_process(spec, processes)
        # The size of a pack is limited by its tokens, not by its number of examples.
        rows = share if filled else micro
        tokens = spec.max_tokens_per_batch or (recipe.data.max_length if filled else None)
        unpadded = packing == "unpadded" and attention in WITH_LENGTHS
        return cls(share, rows, tokens, bool(packing), unpadded)

    def passes(self, lengths: NDArray[np.int32]) -> list[ForwardPass]:
        """Return the forward passes of an epoch in the order of the data.

        In training order, neighbouring examples are of similar length, so that passes contain less
        padding than these.

        Args:
            lengths: tokens of each example, (examples,) int32.
        """
        passes = []
        for start in range(0, len(lengths), self.share):
            # The division depends on lengths alone, so that examples of zeros can stand in.
            step = [
                Example(input_ids=(0,) * length, labels=())
                for length in lengths[start : start + self.share].tolist()
            ]
            for number, group in enumerate(self.split(step)):
                sizes = [len(example.input_ids) for example in group]
                tokens = sum(sizes) if self.packing else len(sizes) * max(sizes)
                passes.append(ForwardPass(start, number, tokens))
        return passes

    def largest_pass_tokens(self, lengths: NDArray[np.int32]) -> int:
        """Return the maximum tokens of a forward pass, padding included.

        An example above `tokens` still gets a pass of its own.

        Args:
            lengths: tokens of each example, (examples,) int32.
        """
        return self.tokens or self.rows * int(lengths.max())

    def read(self, one: ForwardPass, examples: Sequence[Example]) -> list[Example]:
        """Return the examples of a pass, reading only those of its step."""
        return self.split(examples[one.start : one.start + self.share])[one.number]

    def split(self, step: Sequence[Example]) -> list[list[Example]]:
        """Split the examples of a step into forward passes, longest first."""
        return split_micro_batches(step, self.rows, self.tokens, self.packing)

    def tensors(self, step: Sequence[Example], pad_token_id: int) -> list[dict[str, Any]]:
        """Return the model inputs of a step's forward passes, longest first.

        Args:
            step: examples of one step.
            pad_token_id: padding token.

        Returns:
            `input_ids`, `labels` and the mask or positions of each pass, (rows, length) int64; one
            row if `packing` is true.
        """
        return [self.collate(group, pad_token_id) for group in self.split(step)]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, Any]:
        """Return the model inputs of one forward pass, packed or padded, as `tensors` does."""
        return pack_examples(examples) if self.packing else pad_examples(examples, pad_token_id)

    def collate_share(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate this process's share of a step, without dividing it into passes yet.

        Args:
            features: rows of the data set: `input_ids`, `labels`, `targets` and `row`.

        Returns:
            `examples`, their `rows` in the data set, and `labels`, (rows, length) int64, by which
            transformers counts the step's supervised tokens.
        """
        examples = [
            Example(tuple(f["input_ids"]), tuple(f["labels"]), targets=tuple(f.get("targets", ())))
            for f in features
        ]
        labels = self.collate(examples, 0)["labels"] if examples else torch.tensor([[IGNORE_INDEX]])
        rows = [feature["row"] for feature in features]
        return {"examples": examples, "rows": rows, "labels": labels}
