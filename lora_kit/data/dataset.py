"""From the recipe's sources to the data set that a trainer takes, with every row accounted for."""

from __future__ import annotations

import dataclasses
import random
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_kit.classification_spec import ClassificationSpec
from lora_kit.data.labelled import rows_by_class
from lora_kit.data.mixture import mix
from lora_kit.data.prepared import Counts, PreparedData
from lora_kit.data.row_sets import Rows, Source, joined
from lora_kit.data.rows import Row
from lora_kit.data.sources import read_source
from lora_kit.data.store import KEPT_FROM, in_memory, kept
from lora_kit.data.units import prepare_units
from lora_kit.data_spec import SELF, DataSpec, ReplaySpec, SourceSpec
from lora_kit.encoder_decoder import writes_pairs
from lora_kit.errors import DataError
from lora_kit.heads import REWARD
from lora_kit.objective_spec import HEADED, PAIRED, Objective
from lora_kit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Before the name of a source whose rows are replay.
REPLAY = "replay: "
__all__ = [
    "Counts",
    "PreparedData",
    "is_learned",
    "prepare",
    "training_classes",
    "training_rows",
    "validation_rows",
]


class MostlyDroppedError(DataError):
    """Of more rows than are allowed nothing is left to learn.

    Attributes:
        found: how many, and which is the first.
    """

    def __init__(self, found: str, remedy: str):
        super().__init__(f"data: {found}. {remedy}")
        self.found = found


def training_rows(
    spec: DataSpec,
    seed: int,
    objective: Objective = "sft",
    own: Callable[[int], Rows] | None = None,
) -> tuple[Rows, int]:
    """The rows to train on, replay mixed in at random places, and how many of them are replay.

    Args:
        spec: which rows.
        seed: the recipe's.
        objective: of the training, which says whether pairs are wanted.
        own: makes so many rows of the base's own, for the replay source `self`.

    Raises:
        DataError: if a source cannot be read, or has too few rows for the replay or the mixture
            asked for. A row that is wrong is found when it is read.
    """
    whole = spec.labels == "all"
    several = [
        read_source(source, seed, f"data.train.{index}.source", whole, objective in PAIRED)
        for index, source in enumerate(spec.train)
    ]
    is_mixture = spec.temperature is not None or spec.train[0].weight is not None
    rows = mix(several, spec, seed) if is_mixture else joined(several)
    if spec.replay is None or spec.replay.fraction == 0:
        return rows, 0
    wanted = round(len(rows) * spec.replay.fraction / (1 - spec.replay.fraction))
    replay = _replayed(spec.replay, wanted, seed, whole, own)
    both = joined([rows, _as_replay(replay[:wanted])])
    order = array("q", range(len(both)))
    random.Random(f"{seed}/replay").shuffle(order)
    shuffled = np.frombuffer(order, dtype=np.int64)
    return Rows(both.sources, both.parts[shuffled], both.numbers[shuffled]), wanted


def _replayed(
    spec: ReplaySpec, wanted: int, seed: int, whole: bool, own: Callable[[int], Rows] | None
) -> Rows:
    if spec.source == SELF:
        # Whoever only counts rows, without the backbone, is not told what it says.
        return own(wanted) if own else Rows.of(SELF, [Row(f"self#{n}", "") for n in range(wanted)])
    source = SourceSpec(
        source=spec.source, split=spec.split, limit=wanted or 1, license=spec.license
    )
    replay = read_source(source, seed, "data.replay.source", whole)
    if len(replay) < wanted:
        raise DataError(
            f"data.replay.fraction: {spec.fraction} of the rows is {wanted}, but "
            f"{spec.source} has {len(replay)}; lower it"
        )
    return replay


def training_classes(recipe: Recipe) -> dict[str, int]:
    """Rows of each class, in the order of the head's outputs; empty unless there is a head.

    A reward model's one output stands for all of its pairs.

    Raises:
        DataError: if a source or a row is wrong, or the classes are not what the recipe names.
    """
    if recipe.training.objective not in HEADED:
        return {}
    rows, _ = training_rows(recipe.data, recipe.seed, recipe.training.objective)
    if recipe.training.objective == "reward":
        return dict.fromkeys(REWARD, len(rows))
    return rows_by_class(rows, recipe.classification or ClassificationSpec())


def validation_rows(spec: DataSpec, seed: int) -> Rows:
    """The held-out rows whose loss is watched; none if the recipe names no source for them.

    Raises:
        DataError: if a source cannot be read, or has a weight.
    """
    for index, source in enumerate(spec.validation):
        if source.weight is not None:
            raise DataError(
                f"data.validation.{index}.weight: only the sources of data.train are a mixture; "
                "leave it out"
            )
    return joined(
        [
            read_source(source, seed, f"data.validation.{index}.source", spec.labels == "all")
            for index, source in enumerate(spec.validation)
        ]
    )


def prepare(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    replay_rows: int = 0,
    objective: Objective = "sft",
    classes: Sequence[str] = (),
) -> PreparedData:
    """Tokenize rows and drop those that have nothing to learn from.

    Many rows are tokenized once: what they became is kept in the cache folder, and found there as
    long as sources, recipe and tokenizer are the same.

    Args:
        rows: of `training_rows` or `validation_rows`, or any.
        tokenizer: of the backbone.
        spec: how they are read.
        replay_rows: how many of them are replay, for the record.
        objective: of the training.
        classes: where a row's class is learned and not its answer, all that there are.

    Raises:
        DataError: if a row is wrong, no row is left, more were dropped than the recipe allows, or
            the backbone does not learn texts.
    """
    if objective == "text" and writes_pairs(tokenizer):
        raise DataError(
            "training.objective: text: this backbone is an encoder with a decoder, which learns "
            "answers to prompts and no texts alone; use objective: sft, and rows of prompt and "
            "completion"
        )
    if objective not in ("sft", "text", "classification"):
        data: PreparedData = prepare_units(rows, tokenizer, spec, objective)
    elif classes:
        data = in_memory(rows, tokenizer, spec, classes)
    elif isinstance(rows, Rows) and len(rows) >= KEPT_FROM and tokenizer.is_fast:
        data = kept(rows, tokenizer, spec)
    else:
        data = in_memory(rows, tokenizer, spec)
    _refuse_mostly_dropped(data, spec)
    counts = dataclasses.replace(data.counts, replay_rows=replay_rows)
    return dataclasses.replace(data, counts=counts)


def is_learned(source: Source) -> bool:
    """Whether a source of the rows to train on is one of data.train, and no replay."""
    return not source.name.startswith(REPLAY)


def _as_replay(rows: Rows) -> Rows:
    """Under a name of its own, since a source can be trained on and replayed."""
    named = [dataclasses.replace(one, name=f"{REPLAY}{one.name}") for one in rows.sources]
    return Rows(tuple(named), rows.parts, rows.numbers)


def _refuse_mostly_dropped(data: PreparedData, spec: DataSpec) -> None:
    counts = data.counts
    examples = counts.used + counts.dropped
    if examples and (not counts.used or counts.dropped > spec.audit.dropped * examples):
        raise MostlyDroppedError(
            f"{counts.dropped} of {examples} rows have no supervised token within "
            f"{spec.max_length} tokens (allowed: {spec.audit.dropped:.0%}), the first: "
            f"{', '.join(data.dropped)}",
            "Raise data.max_length, shorten the prompts, or raise data.audit.dropped",
        )
