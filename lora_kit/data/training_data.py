"""What a training reads, opened and tokenized once, for all stages that need it."""

from __future__ import annotations

from dataclasses import dataclass

from lora_kit.data.prepared import PreparedData
from lora_kit.data.row_sets import Rows


@dataclass(frozen=True)
class TrainingData:
    """The rows of a recipe and their tokens.

    Attributes:
        sources: the rows of `data.train` in their order, without replay.
        rows: the rows to train on: `sources` with replay and self-distilled answers.
        replay: number of replay rows in `rows`.
        prepared: `rows`, tokenized.
        held_out_rows: the rows of `data.validation`; `None` where they were not needed.
        held_out: `held_out_rows`, tokenized; `None` where they were not needed.
    """

    sources: Rows
    rows: Rows
    replay: int
    prepared: PreparedData
    held_out_rows: Rows | None = None
    held_out: PreparedData | None = None
