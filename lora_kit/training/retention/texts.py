"""Texts on which the retention methods measure or penalize forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from lora_kit.adapter.initial_factors import InitialRows
from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer
from lora_kit.data.audit.audit import refuse_leaked_items
from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.dataset import MostlyDroppedError, prepare
from lora_kit.data.prepared import Examples
from lora_kit.data.row_sets import Rows
from lora_kit.data.sources import open_source
from lora_kit.data.supervision import Example
from lora_kit.recipe.data import DataSpec, SourceSpec, TrainOn
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TextsSpec
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Texts:
    """Retention texts of one method, as rows and tokenized with a label on every token.

    Attributes:
        digest: sha256 of the texts' contents.
        length: largest number of tokens used per text.
        source: source of the texts, as in the recipe.
    """

    rows: Rows
    examples: Examples
    digest: str
    length: int
    source: str


@dataclass(frozen=True)
class RetentionTexts:
    """Texts of each retention method; `None` for methods that the recipe leaves out."""

    kl: Texts | None = None
    early_stopping: Texts | None = None
    ewc: Texts | None = None
    corda: Texts | None = None

    @classmethod
    def read(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> RetentionTexts:
        """Read the texts of every method in a recipe.

        Raises:
            DataError: as `read_retention_texts` does.
        """
        retention, seed = recipe.retention, recipe.seed
        kl, early_stopping, ewc = retention.kl, retention.early_stopping, retention.ewc
        corda = retention.corda

        def read(spec: TextsSpec | None, name: str, limit: int | None) -> Texts | None:
            field = f"retention.{name}"
            return read_retention_texts(spec, tokenizer, seed, field, limit) if spec else None

        return cls(
            read(kl, "kl", None),
            read(early_stopping, "early_stopping", early_stopping.rows if early_stopping else None),
            read(ewc, "ewc", ewc.rows if ewc else None),
            read(corda, "corda", corda.rows if corda else None),
        )

    @property
    def by_field(self) -> dict[str, Texts]:
        """Texts that exist, by recipe field; the trained weights depend on all of them."""
        methods = {"kl": self.kl, "early_stopping": self.early_stopping, "ewc": self.ewc}
        methods |= {"corda": self.corda}
        return {f"retention.{name}": texts for name, texts in methods.items() if texts}

    def initial_rows(self, training: Sequence[Example]) -> InitialRows:
        """Return the rows of LoRA's initialisation: texts of `retention.corda`, or training rows.

        Args:
            training: tokenized training rows.
        """
        if self.corda is None:
            return InitialRows(training)
        return InitialRows(self.corda.examples, self.corda.source)


def refuse_items(texts: RetentionTexts, items: Sequence[AuditedItem], limit: float) -> None:
    """Refuse retention texts that contain items of an evaluation suite.

    Args:
        texts: texts of the retention methods.
        items: items of all suites.
        limit: largest tolerated share of a task's items in the texts, `data.audit.leakage`.

    Raises:
        DataError: naming the field of the texts and the task.
    """
    for field, field_texts in texts.by_field.items():
        refuse_leaked_items(field_texts.rows, items, limit, field)


def read_retention_texts(
    spec: TextsSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    field: str,
    limit: int | None = None,
) -> Texts:
    """Read and tokenize retention texts.

    Args:
        spec: source of the texts, and number of tokens used per text.
        tokenizer: tokenizer of the backbone.
        seed: seed of the selection if `limit` is set.
        field: recipe field, for error messages.
        limit: number of texts to select; `None` for all.

    Raises:
        DataError: if the texts cannot be read, do not fit the backbone, or are fewer than `limit`.
    """
    source = SourceSpec(source=spec.source, split=spec.split, limit=limit)
    # An encoder-decoder predicts the tokens of answers only.
    labels: TrainOn = "assistant" if is_seq2seq_tokenizer(tokenizer) else "all"
    rows = open_source(source, seed, f"{field}.source", labels == "all")
    if limit is not None and len(rows) < limit:
        raise DataError(
            f"{field}.rows: {spec.source} has only {len(rows)} texts (got {limit}). Fix: lower "
            f"{field}.rows to {len(rows)}, or name a larger source"
        )
    data_spec = DataSpec(train=[source], train_on=labels, max_length=spec.length)
    try:
        data = prepare(rows, tokenizer, data_spec)
    except MostlyDroppedError as error:
        raise DataError(
            f"{field}.length: {spec.source}: {error.problem} (got {spec.length}). Fix: raise "
            f"{field}.length, or name texts with shorter prompts"
        ) from error
    except DataError as error:
        raise DataError(f"{field}.source: {spec.source}: {error}") from error
    # A text of one token has nothing to predict.
    scored = data.table.filter(pc.greater(data.table["length"], 1))
    if not scored.num_rows:
        raise DataError(
            f"{field}.source: every text is shorter than two tokens (got {spec.source}). Fix: name "
            "a source with longer texts"
        )
    return Texts(rows, Examples(scored), data.digest, spec.length, spec.source)
