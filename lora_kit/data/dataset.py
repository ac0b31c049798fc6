"""From the recipe's sources to the data set that a trainer takes, with every row accounted for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lora_kit.data.rows import Row
from lora_kit.data.sources import read_source
from lora_kit.data.tokenization import Example, tokenize
from lora_kit.errors import DataError
from lora_kit.recipe import DataSpec, SourceSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Counts:
    """What became of the rows. Tokens are those of the rows in use."""

    rows: int
    used: int
    dropped: int
    truncated: int
    tokens: int
    supervised_tokens: int
    replay_rows: int = 0

    def to_dict(self) -> dict[str, int]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PreparedData:
    """Examples in the order in which they were read, and the count of what became of the rows."""

    examples: tuple[Example, ...]
    counts: Counts

    @property
    def digest(self) -> str:
        """The sha256 of all tokens and labels, in their order."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.input_ids, example.labels)).encode())
        return digest.hexdigest()

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` with the columns `input_ids`, `labels` and `row`."""
        from datasets import Dataset

        return Dataset.from_dict(
            {
                "input_ids": [list(example.input_ids) for example in self.examples],
                "labels": [list(example.labels) for example in self.examples],
                "row": list(range(len(self.examples))),
            }
        )


def training_rows(spec: DataSpec, seed: int) -> tuple[list[Row], int]:
    """The rows to train on, replay mixed in at random places, and how many of them are replay.

    Raises:
        DataError: if a source cannot be read, or has too few rows for the replay asked for.
    """
    rows = _read_all(spec.train, seed, "data.train")
    if spec.replay is None or spec.replay.fraction == 0:
        return rows, 0
    wanted = round(len(rows) * spec.replay.fraction / (1 - spec.replay.fraction))
    source = SourceSpec(source=spec.replay.source, split=spec.replay.split, limit=wanted or 1)
    replay = read_source(source, seed, "data.replay.source")
    if len(replay) < wanted:
        raise DataError(
            f"data.replay.fraction: {spec.replay.fraction} of the rows is {wanted}, but "
            f"{spec.replay.source} has {len(replay)}; lower it"
        )
    mixed = rows + replay[:wanted]
    random.Random(f"{seed}/replay").shuffle(mixed)
    return mixed, wanted


def validation_rows(spec: DataSpec, seed: int) -> list[Row]:
    """The held-out rows whose loss is watched; none if the recipe names no source for them."""
    return _read_all(spec.validation, seed, "data.validation")


def _read_all(sources: Sequence[SourceSpec], seed: int, field: str) -> list[Row]:
    return [
        row
        for index, source in enumerate(sources)
        for row in read_source(source, seed, f"{field}.{index}.source")
    ]


def prepare(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    replay_rows: int = 0,
) -> PreparedData:
    """Tokenize rows and drop those that have nothing to learn from.

    Raises:
        DataError: if no row is left, or more were dropped than the recipe allows.
    """
    examples = [tokenize(row, tokenizer, spec.max_length) for row in rows]
    used = [example for example in examples if example.supervised]
    dropped = [example for example in examples if not example.supervised]
    if rows and (not used or len(dropped) > spec.audit.dropped * len(rows)):
        names = ", ".join(example.origin for example in dropped[:3])
        raise DataError(
            f"data: {len(dropped)} of {len(rows)} rows have no supervised token within "
            f"max_length {spec.max_length} (allowed: {spec.audit.dropped:.0%}), the first: "
            f"{names}. Raise data.max_length, shorten the prompts, or raise data.audit.dropped"
        )
    return PreparedData(
        examples=tuple(used),
        counts=Counts(
            rows=len(rows),
            used=len(used),
            dropped=len(dropped),
            truncated=sum(example.truncated for example in used),
            tokens=sum(len(example.input_ids) for example in used),
            supervised_tokens=sum(example.supervised for example in used),
            replay_rows=replay_rows,
        ),
    )
