"""Texts of the target domain, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_kit.data.labelled import encode_texts
from lora_kit.data.row_sets import concatenate_rows
from lora_kit.data.sources import open_source
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.hashes import json_sha256
from lora_kit.training.head_rows.probe_texts import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELD = "training.domain_alignment.target"


@dataclass(frozen=True)
class TargetTexts:
    """Tokenized texts of the target domain.

    Attributes:
        examples: texts as examples without a label.
        digest: sha256 of their tokens.
    """

    examples: tuple[Example, ...]
    digest: str

    @classmethod
    def read(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TargetTexts | None:
        """Read the texts of a recipe; `None` without `training.domain_alignment`.

        Args:
            recipe: the recipe.
            tokenizer: tokenizer of the backbone.

        Raises:
            DataError: if a source cannot be read, or all have fewer texts than a step has examples.
        """
        spec = recipe.training.domain_alignment
        if spec is None:
            return None
        rows = concatenate_rows(
            [
                open_source(source, recipe.seed, f"{FIELD}.{number}.source")
                for number, source in enumerate(spec.target)
            ]
        )
        if len(rows) < recipe.training.batch_size:
            raise DataError(
                f"{FIELD}: fewer texts than a step has examples (got {len(rows)}, "
                f"training.batch_size is {recipe.training.batch_size}). Fix: name more texts"
            )
        encoded = encode_texts([text_of(row) for row in rows], tokenizer, recipe.data.max_length)
        examples = tuple(Example(ids, (IGNORE_INDEX,) * len(ids)) for ids, _ in encoded)
        return cls(examples, json_sha256([one.input_ids for one in examples]))

    def of_step(self, count: int, seed: int, step: int, process: int) -> list[Example]:
        """Return texts for one process's share of a step, drawn without replacement.

        Args:
            count: number of texts.
            seed: seed of the training.
            step: number of the step.
            process: number of the process.
        """
        generator = np.random.default_rng([seed, step, process])
        chosen = generator.choice(len(self.examples), count, replace=False)
        return [self.examples[number] for number in chosen.tolist()]
