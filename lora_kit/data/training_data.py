"""Training rows, opened and tokenized once for all stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_kit.data.prepared import PreparedData
from lora_kit.data.row_sets import Rows


@dataclass(frozen=True)
class TrainingData:
    """Rows of a recipe and their tokens.

    Attributes:
        sources: rows of `data.train` in order, without replay.
        rows: rows to train on: `sources` with replay and self-distilled answers.
        replay: number of replay rows in `rows`.
        prepared: tokenized `rows`.
        held_out_rows: rows of `data.validation`; `None` if not needed.
        held_out: tokenized `held_out_rows`; `None` if not needed.
        weights: weight in the loss of rows by their index; 1 for the others.
    """

    sources: Rows
    rows: Rows
    replay: int
    prepared: PreparedData
    held_out_rows: Rows | None = None
    held_out: PreparedData | None = None
    weights: Mapping[int, float] = field(default_factory=dict)
