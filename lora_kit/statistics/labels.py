"""Classification: scores of each class, macro-F1, and whether it changed.

Macro-F1 is the mean of the classes' F1, so that a rare class counts as much as a frequent one. The
classes are those of the truth; a prediction of anything else, such as text that is no label, is
wrong for its own class and right for none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from lora_kit.statistics.clusters import (
    Sample,
    cluster_index,
    design_effect_seen,
    percentile_limits,
    replicates,
    sample,
)
from lora_kit.statistics.decisions import Comparison, Interval, decided
from lora_kit.statistics.power import POWER
from lora_kit.statistics.proportions import tango_limits

Floats = NDArray[np.float64]
Limits = Callable[[float], tuple[float, float]]
METHOD = "cluster bootstrap, no narrower than the macro-recall's score intervals (MOVER)"
SMALLEST_P = 1e-3
"""Nearer to 0 the resamples do not tell."""


@dataclass(frozen=True)
class ClassScore:
    """How one class was found.

    Attributes:
        precision: of the predictions of this class, the part that is right; `None` without any.
        recall: of the items of this class, the part that is found.
        f1: 2 TP / (2 TP + FP + FN).
        support: items of this class.
    """

    label: str
    precision: float | None
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class LabelScores:
    """All classes of the truth, by name, and the mean of their F1."""

    classes: tuple[ClassScore, ...]
    macro_f1: float


def label_scores(predicted: Sequence[str], truth: Sequence[str]) -> LabelScores:
    """Precision, recall, F1 and support of each class, and macro-F1 (scikit-learn).

    Args:
        predicted: (items,), labels, or anything else where no label was given.
        truth: (items,), labels.

    Raises:
        ValueError: without items or if the lengths differ.
    """
    _check(predicted, truth)
    labels = sorted(set(truth))
    columns = precision_recall_fscore_support(
        list(truth), list(predicted), labels=labels, zero_division=np.nan
    )
    classes = tuple(
        ClassScore(
            label,
            None if math.isnan(precision) else float(precision),
            float(recall),
            float(f1),
            int(support),
        )
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    )
    return LabelScores(classes, float(np.mean([one.f1 for one in classes])))


def compare_macro_f1(
    predicted_before: Sequence[str],
    predicted_after: Sequence[str],
    truth: Sequence[str],
    clusters: Sequence[str],
    alpha: float,
    margin: float | None,
) -> Comparison:
    """Whether macro-F1 gained (margin `None`, two-sided) or was kept (one-sided).

    Percentile limits of the cluster bootstrap, drawn out where there are few clusters. A class that
    a resample has no item of is left out of that resample's mean. Resamples cannot show a flip that
    did not happen, so the limits are no nearer to the difference than those of the macro-recall:
    Tango's limits of each class's recall, put together by the method of variance estimates recovery
    (Zou & Donner 2008, Statistics in Medicine 27:1693, equation 2).

    Args:
        predicted_before: (items,), of the first arm.
        predicted_after: (items,), of the second.
        truth: (items,).
        clusters: (items,), items of the same name are not independent.
        alpha: of the test.
        margin: greatest loss of macro-F1 that is allowed, above 0; `None` for gain.

    Raises:
        ValueError: without items, if lengths differ, or if the margin is not above 0.
    """
    _check(predicted_before, truth)
    _check(predicted_after, truth)
    _check(clusters, truth)
    before, after = _one_hot(predicted_before, truth), _one_hot(predicted_after, truth)
    true = _one_hot(truth, truth)

    def change(weights: Floats) -> Floats:
        return _macro_f1(weights, after, true) - _macro_f1(weights, before, true)

    count = int(cluster_index(clusters).max()) + 1
    point = float(change(np.ones((1, len(truth))))[0])
    values = replicates(change, clusters) if count > 1 else np.empty(0)
    by_class = _recall_changes(predicted_before, predicted_after, truth, clusters)

    def limits(confidence: float) -> tuple[float, float]:
        if count == 1:
            return -math.inf, math.inf
        low, high = percentile_limits(values, point, count, confidence)
        below, above = _mover(by_class, confidence)
        return min(low, point - below), max(high, point + above)

    return _decide(limits, Interval(point, 0, 0, 0, len(truth), count), alpha, margin)


def _decide(limits: Limits, point: Interval, alpha: float, margin: float | None) -> Comparison:
    """`point` has the difference and the counts; its limits are put in."""
    if margin is not None and margin <= 0:
        raise ValueError(f"a margin of {margin} is not above 0")
    line, sides = (0.0, 2) if margin is None else (-margin, 1)
    confidence = 1 - 2 * alpha / sides
    low, high = limits(confidence)
    decision = decided(low, high, line)
    below = margin is not None or point.delta > 0
    p = min(1.0, sides * _one_sided_p(limits, line, below))
    distance = abs(point.delta - line)
    needed = None
    if decision == "INCONCLUSIVE" and distance > 0 and math.isfinite(low):
        z = float(stats.norm.ppf(0.5 + confidence / 2))
        error = (high - low) / 2 / z
        ratio = (z + float(stats.norm.ppf(POWER))) * error / distance
        needed = math.ceil(point.items * ratio**2)
    interval = replace(point, low=low, high=high, confidence=confidence)
    return Comparison(interval, p, METHOD, decision, needed)


def _one_sided_p(limits: Limits, line: float, below: bool) -> float:
    """The smallest one-sided level at which the lower (upper) limit clears the line, by halving."""

    def clears(level: float) -> bool:
        low, high = limits(1 - 2 * level)
        return low > line if below else high < line

    small, large = math.log(SMALLEST_P), math.log(0.4999)
    if clears(math.exp(small)):
        return SMALLEST_P
    if not clears(math.exp(large)):
        return 1.0
    while large - small > 0.01:
        middle = (small + large) / 2
        small, large = (small, middle) if clears(math.exp(middle)) else (middle, large)
    return math.exp(large)


def _recall_changes(
    before: Sequence[str], after: Sequence[str], truth: Sequence[str], clusters: Sequence[str]
) -> list[Sample]:
    """For each class, wins and losses among its items."""
    true, names = np.asarray(truth, dtype=object), np.asarray(clusters, dtype=object)
    differences = (np.asarray(after, dtype=object) == true).astype(np.float64)
    differences -= np.asarray(before, dtype=object) == true
    return [sample(differences[true == label], list(names[true == label])) for label in set(truth)]


def _mover(by_class: list[Sample], confidence: float) -> tuple[float, float]:
    """Distances of the limits of the mean change of recall below and above it."""
    below = above = 0.0
    for found in by_class:
        effect = design_effect_seen(found)
        low, high = tango_limits(
            found.won / effect, found.lost / effect, found.items / effect, confidence
        )
        below += (found.delta - low) ** 2
        above += (high - found.delta) ** 2
    return math.sqrt(below) / len(by_class), math.sqrt(above) / len(by_class)


def _one_hot(given: Sequence[str], truth: Sequence[str]) -> Floats:
    """(items, classes): 1 where an item is given a class of the truth; no 1 for anything else."""
    labels = np.asarray(sorted(set(truth)), dtype=object)
    return np.asarray(np.asarray(given, dtype=object)[:, None] == labels, dtype=np.float64)


def _macro_f1(weights: Floats, predicted: Floats, true: Floats) -> Floats:
    """(resamples,): macro-F1 of each row of weights (resamples, items), 2 TP / (TP + FP + TP + FN).

    Of the classes that have an item in the row.
    """
    found = weights @ np.concatenate([predicted * true, predicted, true], axis=1)
    hits, given, support = np.split(found, 3, axis=1)
    f1 = 2 * hits / np.maximum(given + support, 1e-300)
    return np.asarray(f1.sum(axis=1, where=support > 0) / (support > 0).sum(axis=1))


def _check(given: Sequence[str], truth: Sequence[str]) -> None:
    if not len(truth):
        raise ValueError("no items to compare")
    if len(given) != len(truth):
        raise ValueError(f"{len(given)} given for {len(truth)} items")
