"""Pipeline from the recipe's sources to tokenized training data, with every row counted."""

from __future__ import annotations

import dataclasses
import random
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lora_kit.backbone.encoder_decoder import is_seq2seq_tokenizer
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.data.head_targets import encode_head_rows
from lora_kit.data.masked_texts import encode_masked_rows
from lora_kit.data.mixture import mix
from lora_kit.data.prepared import PreparedData
from lora_kit.data.row_sets import Rows, RowSource, concatenate_rows
from lora_kit.data.rows import Row
from lora_kit.data.sources import open_source
from lora_kit.data.store import (
    MIN_CACHED_ROWS,
    text_encoder,
    tokenize_cached,
    tokenize_in_memory,
)
from lora_kit.data.units import prepare_units
from lora_kit.data.workers import Encode
from lora_kit.recipe.data import SELF, DataSpec, ReplaySpec, SourceSpec
from lora_kit.recipe.objective import FORMATS_OF, SUPERVISED, Objective
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prefix of the name of a replay source.
REPLAY = "replay: "


class MostlyDroppedError(DataError):
    """Raised if more examples than `data.audit.dropped` allows have no supervised token.

    Attributes:
        problem: number of dropped examples and the origins of the first ones.
    """

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"data: {problem}. Fix: {remedy}")
        self.problem = problem


def open_rows(spec: DataSpec, seed: int, objective: Objective = "sft") -> Rows:
    """Open the sources of `data.train` as one sequence of rows, without replay.

    Args:
        spec: the recipe's `data` section.
        seed: the recipe's seed.
        objective: the training objective; paired objectives need preference rows.

    Raises:
        DataError: if a source cannot be read, or has too few rows for the mixture. A malformed row
            is reported when it is read.
    """
    trains_on_all, needed = spec.train_on == "all", FORMATS_OF.get(objective, ())
    sources = [
        open_source(source, seed, f"data.train.{index}.source", trains_on_all, needed)
        for index, source in enumerate(spec.train)
    ]
    is_mixture = spec.temperature is not None or spec.train[0].weight is not None
    return mix(sources, spec, seed) if is_mixture else concatenate_rows(sources)


def mix_replay(
    rows: Rows, spec: DataSpec, seed: int, generate: Callable[[int], Rows] | None = None
) -> tuple[Rows, int]:
    """Mix replay rows in at random places; return all rows and the number of replay rows.

    Args:
        rows: the rows of `open_rows`.
        spec: the recipe's `data` section.
        seed: the recipe's seed.
        generate: function that generates the requested number of rows with the base, for the
            replay source `self`; placeholders are used without it.

    Raises:
        DataError: if the replay source cannot be read or has too few rows.
    """
    if spec.replay is None or spec.replay.fraction == 0:
        return rows, 0
    count = round(len(rows) * spec.replay.fraction / (1 - spec.replay.fraction))
    replay = _replay_rows(spec, spec.replay, count, seed, generate)[:count]
    # A source can be both trained on and replayed, so replay sources get names of their own.
    named = [dataclasses.replace(one, name=f"{REPLAY}{one.name}") for one in replay.sources]
    both = concatenate_rows([rows, Rows(tuple(named), replay.parts, replay.numbers)])
    order = array("q", range(len(both)))
    random.Random(f"{seed}/replay").shuffle(order)
    shuffled = np.frombuffer(order, dtype=np.int64)
    return Rows(both.sources, both.parts[shuffled], both.numbers[shuffled]), count


def _replay_rows(
    data: DataSpec,
    spec: ReplaySpec,
    count: int,
    seed: int,
    generate: Callable[[int], Rows] | None,
) -> Rows:
    if spec.source == SELF:
        if generate is not None:
            return generate(count)
        return Rows.of(SELF, [Row(f"self#{n}", "") for n in range(count)])
    source = SourceSpec(
        source=spec.source, split=spec.split, limit=count or 1, license=spec.license
    )
    replay = open_source(source, seed, "data.replay.source", data.train_on == "all")
    if len(replay) < count:
        raise DataError(
            f"data.replay.fraction: {spec.fraction} needs {count} replay rows (got {len(replay)} "
            f"in {spec.source}). Fix: lower it, or name a larger source"
        )
    return replay


def validation_rows(spec: DataSpec, seed: int, objective: Objective = "sft") -> Rows:
    """Open the held-out rows of `data.validation`; empty if the recipe names no source.

    Raises:
        DataError: if a source cannot be read, or has a weight.
    """
    for index, source in enumerate(spec.validation):
        if source.weight is not None:
            raise DataError(
                f"data.validation.{index}.weight: only the sources of data.train are a mixture "
                f"(got {source.weight}). Fix: remove it"
            )
    trains_on_all, needed = spec.train_on == "all", FORMATS_OF.get(objective, ())
    return concatenate_rows(
        [
            open_source(source, seed, f"data.validation.{index}.source", trains_on_all, needed)
            for index, source in enumerate(spec.validation)
        ]
    )


def prepare(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    replay_rows: int = 0,
    objective: Objective = "sft",
    outputs: HeadOutputs | None = None,
) -> PreparedData:
    """Tokenize rows and drop examples that have no supervised token.

    At least `MIN_CACHED_ROWS` rows are cached on disk once tokenized, and read from the cache
    while sources, recipe and tokenizer stay the same.

    Args:
        rows: rows of `mix_replay` or `validation_rows`, or any others.
        tokenizer: tokenizer of the backbone.
        spec: the recipe's `data` section.
        replay_rows: number of replay rows among `rows`, for the record.
        objective: the training objective.
        outputs: outputs of a head that reads a text, if rows are trained on their target instead of
            their answer; not read for a reward model.

    Raises:
        DataError: if a row is malformed, no row is left, more rows are dropped than the recipe
            allows, or the backbone does not support texts.
    """
    if objective == "text" and is_seq2seq_tokenizer(tokenizer):
        raise DataError(
            "training.objective: an encoder-decoder backbone needs prompts and answers (got text)."
            " Fix: set sft, with rows of prompt and completion"
        )
    if objective not in SUPERVISED:
        data: PreparedData = prepare_units(rows, tokenizer, spec, objective)
    elif outputs is not None:
        data = tokenize_in_memory(rows, _head_encoder(tokenizer, spec, outputs))
    elif isinstance(rows, Rows) and len(rows) >= MIN_CACHED_ROWS and tokenizer.is_fast:
        data = tokenize_cached(rows, tokenizer, spec)
    else:
        data = tokenize_in_memory(rows, text_encoder(tokenizer, spec))
    _refuse_mostly_dropped(data, spec)
    counts = dataclasses.replace(data.counts, replay_rows=replay_rows)
    return dataclasses.replace(data, counts=counts)


def _head_encoder(
    tokenizer: PreTrainedTokenizerBase, spec: DataSpec, outputs: HeadOutputs
) -> Encode:
    if outputs.kind == "mlm":
        is_split = spec.overflow == "split"
        return partial(
            encode_masked_rows, tokenizer=tokenizer, max_length=spec.max_length, split=is_split
        )
    return partial(
        encode_head_rows, tokenizer=tokenizer, max_length=spec.max_length, outputs=outputs
    )


def is_training_source(source: RowSource) -> bool:
    """Return True if a source belongs to `data.train`, and False for replay."""
    return not source.name.startswith(REPLAY)


def _refuse_mostly_dropped(data: PreparedData, spec: DataSpec) -> None:
    counts = data.counts
    examples = counts.used + counts.dropped
    if examples and (not counts.used or counts.dropped > spec.audit.dropped * examples):
        raise MostlyDroppedError(
            f"{counts.dropped} of {examples} examples have no supervised token within "
            f"{spec.max_length} tokens (allowed: {spec.audit.dropped:.0%}), the first: "
            f"{', '.join(data.dropped)}",
            "raise data.max_length, shorten the prompts, or raise data.audit.dropped",
        )
