"""The texts by which retention is measured or held on to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from lora_kit.backbone.encoder_decoder import writes_pairs
from lora_kit.data.audit.audit import refuse_known
from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.dataset import MostlyDroppedError, prepare
from lora_kit.data.drafts import Labels
from lora_kit.data.prepared import Examples
from lora_kit.data.row_sets import Rows
from lora_kit.data.sources import read_source
from lora_kit.recipe.data import DataSpec, SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TextsSpec
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Texts:
    """Texts as rows, and tokenized with a label on every token.

    Attributes:
        digest: the sha256 of what they hold.
        length: tokens of each that are looked at, at most.
    """

    rows: Rows
    examples: Examples
    digest: str
    length: int


@dataclass(frozen=True)
class RetentionTexts:
    """What a recipe's ways to keep look at; `None` where there is no such way."""

    kl: Texts | None = None
    early_stopping: Texts | None = None
    ewc: Texts | None = None

    @classmethod
    def read(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> RetentionTexts:
        """Raises DataError as `read_texts` does."""
        kept, seed = recipe.retention, recipe.seed
        kl, early_stopping, held = kept.kl, kept.early_stopping, kept.ewc

        def read(spec: TextsSpec | None, field: str, limit: int | None) -> Texts | None:
            where = f"retention.{field}"
            return read_texts(spec, tokenizer, seed, where, limit) if spec else None

        return cls(
            read(kl, "kl", None),
            read(early_stopping, "early_stopping", early_stopping.rows if early_stopping else None),
            read(held, "ewc", held.rows if held else None),
        )

    @property
    def named(self) -> dict[str, Texts]:
        """Those that there are, by the recipe's field: the weights come to depend on each."""
        named = {
            "kl": self.kl,
            "early_stopping": self.early_stopping,
            "ewc": self.ewc,
        }
        return {f"retention.{name}": texts for name, texts in named.items() if texts}


def refuse_items(texts: RetentionTexts, items: Sequence[AuditedItem], limit: float) -> None:
    """Raises DataError where texts hold the items by which the model is measured."""
    for field, of_field in texts.named.items():
        refuse_known(of_field.rows, items, limit, field)


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
        DataError: if they cannot be read, do not fit the backbone, or are fewer than wanted.
    """
    source = SourceSpec(source=spec.source, split=spec.split, limit=limit)
    # An encoder with a decoder has distributions of answers alone.
    labels: Labels = "assistant" if writes_pairs(tokenizer) else "all"
    rows = read_source(source, seed, f"{field}.source", labels == "all")
    if limit is not None and len(rows) < limit:
        raise DataError(f"{field}.rows: {limit}, but {spec.source} has {len(rows)}; lower it")
    wanted = DataSpec(train=[source], train_on=labels, max_length=spec.length)
    try:
        data = prepare(rows, tokenizer, wanted)
    except MostlyDroppedError as error:
        raise DataError(
            f"{field}.length: {spec.length}: {spec.source}: {error.found}. Raise it, or name texts "
            "with shorter prompts"
        ) from error
    except DataError as error:
        raise DataError(f"{field}.source: {spec.source}: {error}") from error
    # Of a single token nothing is predicted.
    several = data.table.filter(pc.greater(data.table["length"], 1))
    if not several.num_rows:
        raise DataError(f"{field}.source: no text of {spec.source} has two tokens or more")
    return Texts(rows, Examples(several), data.digest, spec.length)
