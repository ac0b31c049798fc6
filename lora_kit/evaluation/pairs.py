"""Two arms on one task, item by item: what every comparison starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.runtime.errors import EvaluationError

Entries = Mapping[str, Entry]


@dataclass(frozen=True)
class Pairs:
    """The items that have a score in both arms, in order of their ids.

    Attributes:
        before: entries of the arm that is compared with.
        after: entries of the arm that is judged.
        differences: (items,) float64, positive where the second arm is better.
        binary: whether scores are 0 or 1.
        missing: items without a score in one of the arms.
        lost_scores: whether the second arm lacks a score that the first has.
    """

    before: tuple[Entry, ...]
    after: tuple[Entry, ...]
    differences: NDArray[np.float64]
    binary: bool
    missing: int
    lost_scores: bool

    @property
    def clusters(self) -> list[str]:
        """Of the items."""
        return [entry.cluster for entry in self.before]

    @property
    def won(self) -> int:
        """Items on which the second arm is better."""
        return int((self.differences > 0).sum())

    @property
    def lost(self) -> int:
        """Items on which it is worse."""
        return int((self.differences < 0).sum())

    def where(self, field: str, value: str) -> Pairs:
        """The items of one slice."""
        chosen = [n for n, entry in enumerate(self.before) if entry.slices.get(field) == value]
        return Pairs(
            tuple(self.before[n] for n in chosen),
            tuple(self.after[n] for n in chosen),
            self.differences[chosen],
            self.binary,
            0,
            False,
        )


def pair(before: Entries, after: Entries, task: TaskSpec, where: str) -> Pairs:
    """Pair two arms' entries.

    Raises:
        EvaluationError: if the arms were asked different items, or no item has a score in both.
    """
    if before.keys() != after.keys():
        raise EvaluationError(
            f"{where}: the arms were not evaluated on the same items "
            f"({len(before)} and {len(after)})"
        )
    scored = [item for item in sorted(before) if _has(before[item]) and _has(after[item])]
    if not scored:
        raise EvaluationError(f"{where}: no item has a score in both arms")
    first = np.array([before[item].score for item in scored], dtype=np.float64)
    second = np.array([after[item].score for item in scored], dtype=np.float64)
    # Of a metric only the scores tell whether it says right or wrong.
    zero_or_one = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    return Pairs(
        before=tuple(before[item] for item in scored),
        after=tuple(after[item] for item in scored),
        differences=second - first if task.higher_is_better else first - second,
        binary=task.is_binary or (task.kind in ("lm_eval", "generation") and zero_or_one),
        missing=len(before) - len(scored),
        lost_scores=any(_has(before[item]) and not _has(after[item]) for item in before),
    )


def _has(entry: Entry) -> bool:
    """Whether its score can be compared; a loss that overflowed is no number."""
    return entry.score is not None and math.isfinite(entry.score)


def mean_score(entries: Sequence[Entry]) -> float:
    """Of entries that all have a score."""
    return float(np.mean([entry.score for entry in entries if entry.score is not None]))
