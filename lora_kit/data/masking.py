"""Masked tokens of a text: which tokens are predicted, and what replaces them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.templates import special_token_ids
from lora_kit.recipe.mlm import MlmSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TokenMasker:
    """Masking of texts as a pure function of the seed, the step and the row.

    A resumed training, and one with other micro batches or processes, has the same masks.

    Attributes:
        spec: the recipe's `mlm` section.
        seed: the recipe's seed.
        mask_token_id: id of the mask token.
        ordinary: ids that a random token is drawn from, (ids,) int64.
    """

    spec: MlmSpec
    seed: int
    mask_token_id: int
    ordinary: NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, spec: MlmSpec, seed: int) -> TokenMasker:
        """Return the masking with a tokenizer that has a mask token."""
        special = special_token_ids(tokenizer)
        ordinary = [number for number in range(len(tokenizer)) if number not in special]
        return cls(spec, seed, int(tokenizer.mask_token_id), np.array(ordinary))

    def masked(self, example: Example, row: int, step: int | None = None) -> Example:
        """Return an example with some tokens replaced, and labels of the predicted tokens only.

        Args:
            example: text whose labels are its ordinary tokens; without a label it stays as it is.
            row: index of the example in its data.
            step: optimizer step, from 0; `None` for held-out rows, whose masks are fixed.
        """
        candidates = [n for n, label in enumerate(example.labels) if label != IGNORE_INDEX]
        if not candidates:
            return example
        moment = 0 if step is None else step + 1
        random = np.random.default_rng([self.seed, moment, row])
        is_drawn = random.random(len(candidates)) < self.spec.probability
        if not is_drawn.any():
            is_drawn[random.integers(len(candidates))] = True
        places = np.array(candidates)[is_drawn]
        ids = np.array(example.input_ids)
        labels = np.full(len(ids), IGNORE_INDEX)
        labels[places] = ids[places]
        kinds = random.random(len(places))
        is_masked = kinds < self.spec.mask_share
        is_random = ~is_masked & (kinds < self.spec.mask_share + self.spec.random_share)
        ids[places[is_masked]] = self.mask_token_id
        ids[places[is_random]] = random.choice(self.ordinary, int(is_random.sum()))
        return replace(example, input_ids=tuple(ids.tolist()), labels=tuple(labels.tolist()))

    def held_out(self, examples: Sequence[Example]) -> list[Example]:
        """Return held-out examples with their fixed masks."""
        return [self.masked(example, row) for row, example in enumerate(examples)]
