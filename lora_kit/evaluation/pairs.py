"""Entries of two arms on one task, paired by item: the input of every comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError

Entries = Mapping[str, Entry]


@dataclass(frozen=True)
class Pairs:
    """Items that have a score in both arms, in order of their ids.

    Attributes:
        before: entries of the reference arm.
        after: entries of the arm that is judged.
        differences: (items,) float64, positive where the judged arm is better.
        binary: true if every score is 0 or 1.
        missing: number of items without a score in one of the arms.
        lost_scores: true if the judged arm lacks a score that the reference arm has.
    """

    before: tuple[Entry, ...]
    after: tuple[Entry, ...]
    differences: NDArray[np.float64]
    binary: bool
    missing: int
    lost_scores: bool

    @property
    def clusters(self) -> list[str]:
        """Cluster of each item."""
        return [entry.cluster for entry in self.before]

    @property
    def won(self) -> int:
        """Number of items on which the judged arm is better."""
        return int((self.differences > 0).sum())

    @property
    def lost(self) -> int:
        """Number of items on which the judged arm is worse."""
        return int((self.differences < 0).sum())

    def in_slice(self, field: str, value: str) -> Pairs:
        """Return the pairs whose items have this value of the field."""
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
        EvaluationError: if the arms have different items, or no item has a score in both.
    """
    if before.keys() != after.keys():
        raise EvaluationError(
            f"{where}: the arms were not evaluated on the same items "
            f"(got {len(before)} and {len(after)}). Fix: evaluate the arms together"
        )
    scored = [item for item in sorted(before) if has_score(before[item]) and has_score(after[item])]
    if not scored:
        raise EvaluationError(
            f"{where}: no item has a score in both arms (got {len(before)} items). Fix: look at "
            "the outputs in the ledger; a loss that overflows or an unparsable output has no score"
        )
    first = np.array([before[item].score for item in scored], dtype=np.float64)
    second = np.array([after[item].score for item in scored], dtype=np.float64)
    # Only its scores show that a metric gives right or wrong alone.
    zero_or_one = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    return Pairs(
        before=tuple(before[item] for item in scored),
        after=tuple(after[item] for item in scored),
        differences=second - first if task.higher_is_better else first - second,
        binary=task.is_binary or (task.kind in ("lm_eval", "generation") and zero_or_one),
        missing=len(before) - len(scored),
        lost_scores=any(has_score(before[item]) and not has_score(after[item]) for item in before),
    )


def has_score(entry: Entry) -> bool:
    """Return True if an entry has a score that can be compared."""
    # A loss that overflowed is not finite and cannot be compared.
    return entry.score is not None and math.isfinite(entry.score)


def mean_score(entries: Sequence[Entry]) -> float:
    """Return the mean score of entries that all have one."""
    return float(np.mean([entry.score for entry in entries if entry.score is not None]))
