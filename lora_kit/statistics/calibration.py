"""Whether a model is right as often as it is sure, before and after.

Probabilities are those of the choices of a multiple-choice item, adding up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.statistics.clusters import cluster_index
from lora_kit.statistics.decisions import Interval, bootstrap_statistic, paired_interval

Floats = NDArray[np.float64]
Probabilities = Sequence[Sequence[float]]
BINS = 15


@dataclass(frozen=True)
class Bin:
    """A bar of a reliability diagram: items whose top probability is in (low, high].

    Attributes:
        confidence: their mean top probability; `None` without items.
        accuracy: the part of them that is right; `None` without items.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from the truth; 0 is best for both.

    Attributes:
        ece: expected calibration error, the mean over items of |accuracy - confidence| of their bin
            (Guo et al. 2017, equation 3), 15 bins of equal width. Few items per bin make it larger.
        brier: mean over items of the sum over choices of (probability - truth)^2 (Brier 1950), from
            0 to 2.
    """

    ece: float
    brier: float
    items: int
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class CalibrationComparison:
    """Two arms on the same items; a delta is positive where the second is better calibrated."""

    before: Calibration
    after: Calibration
    ece: Interval
    brier: Interval


def calibration(probabilities: Probabilities, answers: Sequence[int]) -> Calibration:
    """Calibration of one arm.

    Args:
        probabilities: for each item those of its choices, however many it has.
        answers: for each item the number of the right choice, from 0.

    Raises:
        ValueError: without items, if the lengths differ, if probabilities are negative or do not
            add up to 1, or if an answer is none of the choices.
    """
    confidence, right, brier = _by_item(probabilities, answers)
    index = _bins(confidence)
    counts = np.bincount(index, minlength=BINS)
    bars = tuple(
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            count=int(count),
            confidence=float(confidence[index == number].mean()) if count else None,
            accuracy=float(right[index == number].mean()) if count else None,
        )
        for number, count in enumerate(counts)
    )
    ece = float(_ece(np.ones((1, len(right))), confidence, right)[0])
    return Calibration(ece, float(brier.mean()), len(right), bars)


def compare_calibration(
    before: Probabilities,
    after: Probabilities,
    answers: Sequence[int],
    clusters: Sequence[str],
    confidence: float,
) -> CalibrationComparison:
    """Calibration of two arms on the same items, and the differences with their intervals.

    The Brier score is a mean and compared as every mean is. ECE is none: percentile limits of the
    cluster bootstrap. Resampling adds as much noise to the bins of either arm, so that it leaves
    the difference but not ECE itself without bias.

    Args:
        before: as `calibration`, of the first arm.
        after: of the second.
        answers: for each item the number of the right choice.
        clusters: (items,), items of the same name are not independent.
        confidence: two-sided, such as 0.95.

    Raises:
        ValueError: as `calibration`, or if the arms have different items.
    """
    if [len(one) for one in before] != [len(one) for one in after]:
        raise ValueError("the arms do not have the same items and choices")
    first, second = calibration(before, answers), calibration(after, answers)
    sure_before, right_before, brier_before = _by_item(before, answers)
    sure_after, right_after, brier_after = _by_item(after, answers)

    def improvement(weights: Floats) -> Floats:
        return _ece(weights, sure_before, right_before) - _ece(weights, sure_after, right_after)

    low, high = bootstrap_statistic(improvement, clusters, confidence)
    return CalibrationComparison(
        before=first,
        after=second,
        ece=Interval(
            delta=first.ece - second.ece,
            low=low,
            high=high,
            confidence=confidence,
            items=len(answers),
            clusters=int(cluster_index(clusters).max()) + 1,
        ),
        brier=paired_interval(brier_before - brier_after, clusters, confidence, binary=False),
    )


def _by_item(probabilities: Probabilities, answers: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """(items,) each: top probability, whether its choice is right (1 or 0), Brier score."""
    if len(probabilities) == 0:
        raise ValueError("no items to calibrate")
    if len(probabilities) != len(answers):
        raise ValueError(f"{len(probabilities)} items but {len(answers)} answers")
    found = []
    for number, (given, answer) in enumerate(zip(probabilities, answers, strict=True)):
        choices = np.asarray(given, dtype=np.float64)
        if not (choices >= 0).all() or not np.isclose(choices.sum(), 1.0, atol=1e-4):
            raise ValueError(f"item {number}: {list(given)} are no probabilities that add up to 1")
        if not 0 <= answer < len(choices):
            raise ValueError(f"item {number}: there is no choice {answer} of {len(choices)}")
        top = int(choices.argmax())
        brier = float((choices**2).sum() - 2 * choices[answer] + 1)
        found.append((float(choices[top]), float(top == answer), brier))
    columns = np.asarray(found).T
    return columns[0], columns[1], columns[2]


def _bins(confidence: Floats) -> NDArray[np.int64]:
    """(items,): the bin, of equal widths, open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _ece(weights: Floats, confidence: Floats, right: Floats) -> Floats:
    """(resamples,): ECE of each row of weights, (resamples, items).

    A bin's share of the items times its |accuracy - confidence| is |sum of weight (right -
    confidence)| over the sum of all weights.
    """
    gaps = np.zeros((len(right), BINS))
    gaps[np.arange(len(right)), _bins(confidence)] = right - confidence
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1))
