"""Descriptions of saved heads: statistics of the training rows, for the baselines of an evaluation.

Each kind of head has a file of its own beside the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from lora_kit.adapter.saved_masked import SavedMasked
from lora_kit.backbone.heads import REWARD, HeadOutputs, embedding_outputs
from lora_kit.recipe.embedding import Pooling
from lora_kit.runtime.errors import AdapterError

RESTORE = "Fix: restore the file from the run that trained the adapter"


@dataclass(frozen=True)
class SavedClasses:
    """Classes of a saved adapter.

    Attributes:
        rows: number of training rows per class, in the order of the outputs.
    """

    FILE: ClassVar[str] = "classes.json"

    rows: dict[str, int]

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("classification", tuple(self.rows))

    @property
    def most_frequent(self) -> str:
        """The class with the most training rows; the first in output order on ties."""
        return max(self.rows, key=self.rows.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"training_rows": self.rows}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedClasses:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        rows = value.get("training_rows")
        if (
            not isinstance(rows, dict)
            or not rows
            or not all(isinstance(n, int) for n in rows.values())
        ):
            raise AdapterError(
                f"{path}: training_rows must be a number of rows for each class (got "
                f"{rows!r:.80}). {RESTORE}"
            )
        return cls(rows)


@dataclass(frozen=True)
class SavedNumbers:
    """Numbers of a saved regression.

    Attributes:
        rows: number of training rows.
        means: mean of each number over the training rows, in the order of the outputs.
        deviations: standard deviation of each number over the training rows.
    """

    FILE: ClassVar[str] = "numbers.json"

    rows: int
    means: dict[str, float]
    deviations: dict[str, float]

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("regression", tuple(self.means))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"training_rows": self.rows, "means": self.means, "deviations": self.deviations}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedNumbers:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        rows, means, deviations = (
            value.get(name) for name in ("training_rows", "means", "deviations")
        )
        if not isinstance(rows, int) or not (_are_numbers(means) and _are_numbers(deviations)):
            raise AdapterError(
                f"{path}: training_rows must be a whole number, means and deviations a number for "
                f"each output (got {rows!r:.20}, {means!r:.40} and {deviations!r:.40}). {RESTORE}"
            )
        return cls(rows, means, deviations)  # type: ignore[arg-type]


def _are_numbers(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(one, int | float) and math.isfinite(one) for one in value.values())
    )


@dataclass(frozen=True)
class SavedLabels:
    """Labels of a saved multi-label head.

    Attributes:
        rows: number of training rows.
        counts: number of training rows that have a label, in the order of the outputs.
        thresholds: probability from which on a label is predicted.
        validation_rows: number of rows on which the thresholds were chosen; 0 if they were given.
    """

    FILE: ClassVar[str] = "labels.json"

    rows: int
    counts: dict[str, int]
    thresholds: dict[str, float]
    validation_rows: int

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("multi-label", tuple(self.counts))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "training_rows": self.rows,
            "counts": self.counts,
            "thresholds": self.thresholds,
            "validation_rows": self.validation_rows,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedLabels:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        names = ("training_rows", "counts", "thresholds", "validation_rows")
        rows, counts, thresholds, chosen_on = (value.get(name) for name in names)
        are_whole = isinstance(rows, int) and isinstance(chosen_on, int)
        if not are_whole or not (_are_numbers(counts) and _are_numbers(thresholds)):
            raise AdapterError(
                f"{path}: training_rows and validation_rows must be whole numbers, counts and "
                f"thresholds a number for each label (got {counts!r:.40} and {thresholds!r:.40}). "
                f"{RESTORE}"
            )
        return cls(rows, counts, thresholds, chosen_on)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SavedTags:
    """Tags of a saved token classifier.

    Attributes:
        rows: number of training rows.
        counts: number of training words that have a tag, in the order of the outputs.
        words: for each word that has another tag than `O` in a training row, the number of times
            that it has each of its tags.
    """

    FILE: ClassVar[str] = "tags.json"

    rows: int
    counts: dict[str, int]
    words: dict[str, dict[str, int]]

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return HeadOutputs("token-classification", tuple(self.counts))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"training_rows": self.rows, "counts": self.counts, "words": self.words}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedTags:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        rows, counts, words = (value.get(name) for name in ("training_rows", "counts", "words"))
        are_counts = (
            _are_numbers(counts)
            and isinstance(words, dict)
            and all(_are_numbers(one) and set(one) <= set(counts or ()) for one in words.values())
        )
        if not isinstance(rows, int) or not are_counts:
            raise AdapterError(
                f"{path}: training_rows must be a whole number, counts and each of words a number "
                f"for each tag (got {rows!r:.20}, {counts!r:.40} and {words!r:.40}). {RESTORE}"
            )
        return cls(rows, counts, words)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SavedReward:
    """Training pairs of a saved reward model.

    Attributes:
        pairs: number of training pairs.
        per_token: log-odds that an answer is the chosen one, per token that it is longer than the
            other; the information in length alone.
    """

    FILE: ClassVar[str] = "reward.json"

    pairs: int
    per_token: float

    @property
    def outputs(self) -> HeadOutputs:
        """Outputs of the head."""
        return REWARD

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedReward:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        pairs, per_token = value.get("pairs"), value.get("per_token")
        if not isinstance(pairs, int) or not isinstance(per_token, float | int):
            raise AdapterError(
                f"{path}: pairs must be a whole number and per_token a number (got {pairs!r:.40} "
                f"and {per_token!r:.40}). {RESTORE}"
            )
        return cls(pairs, float(per_token))


@dataclass(frozen=True)
class SavedEmbedding:
    """Vectors of a saved adapter.

    Attributes:
        pairs: number of training pairs.
        pooling: hidden states that become the vector of a text.
        temperature: divisor of the cosines in the loss.
        max_length: tokens to which texts were truncated.
    """

    FILE: ClassVar[str] = "embedding.json"

    pairs: int
    pooling: Pooling
    temperature: float
    max_length: int

    @property
    def outputs(self) -> HeadOutputs:
        """Output of the model."""
        return embedding_outputs(self.pooling)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> SavedEmbedding:
        """Read the content of the file.

        Raises:
            AdapterError: if it is not valid.
        """
        pairs, pooling = value.get("pairs"), value.get("pooling")
        temperature, length = value.get("temperature"), value.get("max_length")
        are_whole = isinstance(pairs, int) and isinstance(length, int)
        if (
            not are_whole
            or pooling not in get_args(Pooling)
            or not isinstance(temperature, float | int)
        ):
            raise AdapterError(
                f"{path}: pairs and max_length must be whole numbers, temperature a number, and "
                f"pooling one of {', '.join(get_args(Pooling))} (got {pairs!r:.20}, "
                f"{length!r:.20}, {temperature!r:.20} and {pooling!r:.20}). {RESTORE}"
            )
        return cls(pairs, pooling, float(temperature), length)  # type: ignore[arg-type]


SavedHead = (
    SavedClasses
    | SavedNumbers
    | SavedLabels
    | SavedTags
    | SavedReward
    | SavedEmbedding
    | SavedMasked
)
# Of a directory with several files, the first that is there.
KINDS: tuple[type[SavedHead], ...] = (
    SavedReward,
    SavedClasses,
    SavedNumbers,
    SavedLabels,
    SavedTags,
    SavedEmbedding,
    SavedMasked,
)
