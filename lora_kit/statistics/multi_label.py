"""Scores of predicted labels over weighted items, and the choice of thresholds.

Statistics for the bootstrap are functions from weights, (resamples, items), to values,
(resamples,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_kit.statistics.bootstrap import Statistic
from lora_kit.statistics.clusters import Floats


def micro_f1(predicted: Floats, true: Floats) -> Statistic:
    """Return F1 of all decisions together, 2 TP / (2 TP + FP + FN); 1 if there is none to make.

    Args:
        predicted: (items, labels), 1 where a label is predicted.
        true: (items, labels), 1 where an item has a label.
    """

    def statistic(weights: Floats) -> Floats:
        hits, made = _counts(weights, predicted, true)
        return _f1(hits.sum(axis=1), made.sum(axis=1))

    return statistic


def macro_f1(predicted: Floats, true: Floats) -> Statistic:
    """Return the mean of the labels' F1, over the labels that an item of the resample has.

    Args:
        predicted: (items, labels), 1 where a label is predicted.
        true: (items, labels), 1 where an item has a label.
    """

    def statistic(weights: Floats) -> Floats:
        hits, made = _counts(weights, predicted, true)
        return _mean(_f1(hits, made), weights @ true > 0)

    return statistic


def mean_average_precision(scores: Floats, true: Floats) -> Statistic:
    """Return the mean of the labels' average precision, over the labels that an item has.

    Average precision is the mean, over the items that have a label, of the precision among all
    items with a score at least as high; there is no interpolation.

    Args:
        scores: (items, labels), any numbers by which items can be ordered.
        true: (items, labels), 1 where an item has a label.
    """

    def statistic(weights: Floats) -> Floats:
        by_label = [
            _average_precision(weights, given, right)
            for given, right in zip(scores.T, true.T, strict=True)
        ]
        return _mean(np.stack(by_label, axis=1), weights @ true > 0)

    return statistic


def _average_precision(weights: Floats, scores: Floats, true: Floats) -> Floats:
    order = np.argsort(-scores, kind="stable")
    # Items with equal scores are above the threshold together.
    ends = np.flatnonzero(np.diff(scores[order], append=np.inf))
    found = np.cumsum((weights * true)[:, order], axis=1)[:, ends]
    above = np.cumsum(weights[:, order], axis=1)[:, ends]
    gained = np.diff(found, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(above > 0, found / above, 0.0)
        return np.asarray((gained * precision).sum(axis=1) / found[:, -1])


def _counts(weights: Floats, predicted: Floats, true: Floats) -> tuple[Floats, Floats]:
    """Return true positives, and predictions plus items, of each label, (resamples, labels)."""
    return weights @ (predicted * true), weights @ (predicted + true)


def _f1(hits: Floats, made: Floats) -> Floats:
    return np.asarray(np.where(made > 0, 2 * hits / np.maximum(made, 1e-300), 1.0))


def _mean(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return the mean of each row over the known columns; NaN without one."""
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, total / count, np.nan))


def choose_thresholds(probabilities: Floats, true: Floats, even: float) -> list[float]:
    """Return the threshold of each label with the highest F1; of several, the highest.

    A threshold lies in the middle between two probabilities, or below all of them at 0.

    Args:
        probabilities: (items, labels).
        true: (items, labels), 1 where an item has a label.
        even: threshold of a label that no item has.
    """
    chosen = []
    for given, right in zip(probabilities.T, true.T, strict=True):
        if not right.any():
            chosen.append(even)
            continue
        levels = np.unique(given)
        predicted = given >= levels[:, None]
        f1 = _f1((predicted * right).sum(axis=1), predicted.sum(axis=1) + right.sum())
        best = int(len(levels) - 1 - np.argmax(f1[::-1]))
        chosen.append(float((levels[best] + levels[best - 1]) / 2) if best else 0.0)
    return chosen
