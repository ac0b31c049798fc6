"""Calibration of the probabilities of multiple-choice items, before and after training.

The probabilities are those of an item's choices and add up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.statistics.bootstrap import bootstrap_statistic
from lora_kit.statistics.clusters import Floats, cluster_count
from lora_kit.statistics.decisions import Interval, paired_interval

Probabilities = Sequence[Sequence[float]]
BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Bin of a reliability diagram: the items whose top probability is in (low, high].

    Attributes:
        low: lower edge.
        high: upper edge.
        count: number of items.
        confidence: mean top probability of the items; `None` without items.
        accuracy: share of the items whose top choice is right; `None` without items.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration errors of one arm; lower is better.

    Attributes:
        ece: expected calibration error, the mean over items of |accuracy - confidence| of the
            item's bin (Guo et al. 2017, equation 3), with 15 bins of equal width. Biased upwards
            with few items per bin.
        brier: mean over items of the sum over choices of (probability - truth)^2 (Brier 1950), 0
            to 2.
        items: number of items.
        bins: bins of the reliability diagram.
    """

    ece: float
    brier: float
    items: int
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class CalibrationComparison:
    """Calibration of two arms on the same items; deltas above 0 favour the second arm."""

    before: Calibration
    after: Calibration
    ece: Interval
    brier: Interval


def compute_calibration(probabilities: Probabilities, answers: Sequence[int]) -> Calibration:
    """Compute the calibration errors of one arm.

    Args:
        probabilities: probabilities of the choices of each item; items may differ in their number.
        answers: index of the right choice of each item, from 0.

    Raises:
        ValueError: without items, if the lengths differ, if probabilities are negative or do not
            add up to 1, or if an answer is not the index of a choice.
    """
    return _calibration(*_by_item(probabilities, answers))


def _calibration(confidence: Floats, right: Floats, brier: Floats) -> Calibration:
    """Compute the calibration errors from the columns of `_by_item`."""
    index = _bin_index(confidence)
    counts = np.bincount(index, minlength=BINS)
    bins = tuple(
        ReliabilityBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            count=int(count),
            confidence=float(confidence[index == number].mean()) if count else None,
            accuracy=float(right[index == number].mean()) if count else None,
        )
        for number, count in enumerate(counts)
    )
    ece = float(_ece(np.ones((1, len(right))), confidence, right)[0])
    return Calibration(ece, float(brier.mean()), len(right), bins)


def compare_calibration(
    before: Probabilities,
    after: Probabilities,
    answers: Sequence[int],
    clusters: Sequence[str],
    confidence: float,
) -> CalibrationComparison:
    """Compare the calibration of two arms on the same items, with intervals of the differences.

    The Brier score is a mean and has the interval of a mean. ECE is not a mean and has percentile
    limits of the cluster bootstrap. Resampling noise biases the ECE of both arms upwards by about
    the same amount, so the difference is nearly unbiased.

    Args:
        before: probabilities of the first arm, as in `compute_calibration`.
        after: probabilities of the second arm.
        answers: index of the right choice of each item, from 0.
        clusters: (items,), cluster name of each item.
        confidence: two-sided confidence level, such as 0.95.

    Raises:
        ValueError: as `compute_calibration`, or if the arms have different items.
    """
    if [len(one) for one in before] != [len(one) for one in after]:
        raise ValueError("after: the arms do not have the same items and choices")
    top_before, right_before, brier_before = _by_item(before, answers)
    top_after, right_after, brier_after = _by_item(after, answers)
    first = _calibration(top_before, right_before, brier_before)
    second = _calibration(top_after, right_after, brier_after)

    def improvement(weights: Floats) -> Floats:
        return _ece(weights, top_before, right_before) - _ece(weights, top_after, right_after)

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
            clusters=cluster_count(clusters),
        ),
        brier=paired_interval(brier_before - brier_after, clusters, confidence, binary=False),
    )


def _by_item(probabilities: Probabilities, answers: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """Return top probability, correctness of the top choice (0 or 1) and Brier score, (items,)."""
    if len(probabilities) == 0:
        raise ValueError("probabilities: no items to calibrate")
    if len(probabilities) != len(answers):
        raise ValueError(
            f"answers: expected one for each of {len(probabilities)} items (got {len(answers)})"
        )
    rows = []
    for number, (values, answer) in enumerate(zip(probabilities, answers, strict=True)):
        choices = np.asarray(values, dtype=np.float64)
        if not (choices >= 0).all() or not np.isclose(choices.sum(), 1.0, atol=1e-4):
            raise ValueError(
                f"item {number}: probabilities must be at least 0 and add up to 1 (got "
                f"{list(values)})"
            )
        if not 0 <= answer < len(choices):
            raise ValueError(f"item {number}: no choice {answer} (got {len(choices)} choices)")
        top = int(choices.argmax())
        brier = float((choices**2).sum() - 2 * choices[answer] + 1)
        rows.append((float(choices[top]), float(top == answer), brier))
    columns = np.asarray(rows).T
    return columns[0], columns[1], columns[2]


def _bin_index(confidence: Floats) -> NDArray[np.int64]:
    """Return the bin of each item, (items,); bins are open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _ece(weights: Floats, confidence: Floats, right: Floats) -> Floats:
    """Compute the ECE of each resample.

    A bin's share of the items times its |accuracy - confidence| equals |sum of weight (right -
    confidence)| over the sum of all weights.

    Args:
        weights: (resamples, items).
        confidence: (items,), top probability.
        right: (items,), 1 if the top choice is right, else 0.

    Returns:
        (resamples,).
    """
    gaps = np.zeros((len(right), BINS))
    gaps[np.arange(len(right)), _bin_index(confidence)] = right - confidence
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1))
