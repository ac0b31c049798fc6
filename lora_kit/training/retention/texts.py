"""The texts by which retention is measured or held on to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.data.dataset import prepare
from lora_kit.data.prepared import Examples
from lora_kit.data.sources import Rows, read_source
from lora_kit.data_spec import DataSpec, SourceSpec
from lora_kit.errors import DataError
from lora_kit.recipe import Recipe
from lora_kit.retention_spec import TextsSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Texts:
    """Texts as rows, and tokenized with a label on every token."""

    rows: Rows
    examples: Examples


@dataclass(frozen=True)
class RetentionTexts:
    """What a recipe's ways to keep look at; `None` where there is no such way."""

    anchor: Texts | None = None
    budget: Texts | None = None

    @classmethod
    def read(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> RetentionTexts:
        """Raises DataError as `read_texts` does."""
        anchor, budget = recipe.retention.anchor, recipe.retention.budget
        seed, field = recipe.seed, "retention"
        return cls(
            read_texts(anchor, tokenizer, seed, f"{field}.anchor") if anchor else None,
            read_texts(budget, tokenizer, seed, f"{field}.budget", budget.rows) if budget else None,
        )


def read_texts(
    spec: TextsSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    field: str,
    limit: int | None = None,
) -> Texts:
    """Read and tokenize texts.

    Args:
        spec: where they are, and how much of each is looked at.
        tokenizer: of the backbone.
        seed: chooses where there is a limit.
        field: of the recipe, for errors.
        limit: most texts.

    Raises:
        DataError: if they cannot be read, or are fewer than wanted.
    """
    source = SourceSpec(source=spec.source, split=spec.split, limit=limit)
    rows = read_source(source, seed, f"{field}.source", True)
    if limit is not None and len(rows) < limit:
        raise DataError(f"{field}.rows: {limit}, but {spec.source} has {len(rows)}; lower it")
    whole = DataSpec(train=[source], labels="all", max_length=spec.length)
    return Texts(rows, prepare(rows, tokenizer, whole).examples)
