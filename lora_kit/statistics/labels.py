"""Classification scores: precision, recall and F1 per class, and comparison of macro-F1.

Macro-F1 is the mean of the classes' F1, so a rare class has the same weight as a frequent one. The
classes are those of the truth. A prediction of anything else, such as text that is not a label, is
a miss for the item's class and a false positive for none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.statistics.bootstrap import bootstrap_replicates, percentile_limits
from lora_kit.statistics.clusters import (
    ClusteredSample,
    Floats,
    cluster_count,
    clustered_sample,
    effective_counts,
)
from lora_kit.statistics.decisions import Interval, PairedComparison
from lora_kit.statistics.proportions import tango_limits
from lora_kit.statistics.resampled import decide_by_limits

METHOD = "cluster bootstrap, no narrower than the macro-recall's score intervals (MOVER)"


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class, or of one label of several.

    Attributes:
        label: name of the class.
        precision: share of this class's predictions that are right; `None` without predictions.
        recall: share of this class's items that are predicted as this class.
        f1: 2 TP / (2 TP + FP + FN).
        support: number of items of this class.
        average_precision: mean precision at the items of this class, ordered by the probability of
            the class against all others; `None` without probabilities.
        pr_area: area under precision by recall, by the trapezoidal rule; `None` likewise.
    """

    label: str
    precision: float | None
    recall: float
    f1: float
    support: int
    average_precision: float | None = None
    pr_area: float | None = None


@dataclass(frozen=True)
class LabelScores:
    """Scores of all classes of the truth, sorted by name, and their means.

    Attributes:
        classes: scores of each class.
        macro_f1: mean of the classes' F1.
        macro_average_precision: mean of their average precision; `None` without probabilities.
        macro_pr_area: mean of their area under precision by recall; `None` likewise.
    """

    classes: tuple[ClassScore, ...]
    macro_f1: float
    macro_average_precision: float | None = None
    macro_pr_area: float | None = None


@dataclass(frozen=True)
class Confusion:
    """Number of items by true and predicted class.

    Attributes:
        labels: classes of the truth, sorted.
        counts: for each true class, items by predicted class; the last is any other answer.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def label_scores(
    predicted: Sequence[str], truth: Sequence[str], scores: Mapping[str, Floats] | None = None
) -> LabelScores:
    """Compute the scores of each class and their means (scikit-learn).

    Args:
        predicted: (items,), predicted labels, or any other text where no label was given.
        truth: (items,), true labels.
        scores: (items,) of each class, any numbers by which items can be ordered.

    Raises:
        ValueError: without items, or if the lengths differ.
    """
    _require_same_length("predicted", predicted, truth)
    names = sorted(set(truth))
    ranked = None if scores is None else np.stack([scores[name] for name in names], axis=1)
    return table_scores(names, _one_hot(predicted, truth), _one_hot(truth, truth), ranked)


def table_scores(
    names: Sequence[str], predicted: Floats, true: Floats, scores: Floats | None
) -> LabelScores:
    """Compute the scores of each label that an item has, and their means (scikit-learn).

    Args:
        names: names of the labels.
        predicted: (items, labels), 1 where a label is predicted.
        true: (items, labels), 1 where an item has a label.
        scores: (items, labels), any numbers by which items can be ordered.
    """
    from sklearn.metrics import precision_recall_fscore_support

    found = []
    for number in np.argsort(names).tolist():
        right = true[:, number]
        if not right.any():
            continue
        columns = precision_recall_fscore_support(
            right, predicted[:, number], labels=[1.0], zero_division=np.nan
        )
        precision, recall, f1, support = (column[0] for column in columns)
        areas = (None, None) if scores is None else _areas(scores[:, number], right)
        given = None if math.isnan(precision) else float(precision)
        found.append(
            ClassScore(names[number], given, float(recall), float(f1), int(support), *areas)
        )
    return LabelScores(
        tuple(found),
        float(np.mean([one.f1 for one in found])),
        _mean([one.average_precision for one in found]),
        _mean([one.pr_area for one in found]),
    )


def _areas(scores: Floats, true: Floats) -> tuple[float, float]:
    """Return average precision, and the trapezoidal area under precision by recall."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(true, scores)
    return float(average_precision_score(true, scores)), float(auc(recall, precision))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def count_confusions(predicted: Sequence[str], truth: Sequence[str]) -> Confusion:
    """Count the items by true and predicted class.

    Args:
        predicted: (items,), predicted labels, or any other text where no label was given.
        truth: (items,), true labels.

    Raises:
        ValueError: without items, or if the lengths differ.
    """
    _require_same_length("predicted", predicted, truth)
    names = sorted(set(truth))
    given, true = _one_hot(predicted, truth), _one_hot(truth, truth)
    other = 1 - given.sum(axis=1, keepdims=True)
    counts = true.T @ np.concatenate([given, other], axis=1)
    return Confusion(tuple(names), tuple(tuple(map(int, row)) for row in counts.tolist()))


def compare_macro_f1(
    predicted_before: Sequence[str],
    predicted_after: Sequence[str],
    truth: Sequence[str],
    clusters: Sequence[str],
    alpha: float,
    margin: float | None,
) -> PairedComparison:
    """Decide on a gain (margin `None`, two-sided) or retention (one-sided) of macro-F1.

    The limits are percentile limits of the cluster bootstrap, widened for few clusters. A class
    without items in a resample is left out of that resample's mean. Resamples cannot contain flips
    that did not occur, so the limits are at least as wide as those of the macro-recall: Tango's
    limits of each class's recall, combined by the method of variance estimates recovery (Zou &
    Donner 2008, Statistics in Medicine 27:1693, equation 2).

    Args:
        predicted_before: (items,), predictions of the first arm.
        predicted_after: (items,), predictions of the second arm.
        truth: (items,), true labels.
        clusters: (items,), cluster name of each item.
        alpha: level of the test.
        margin: largest acceptable loss of macro-F1, above 0; `None` for gain.

    Raises:
        ValueError: without items, if the lengths differ, or if the margin is not above 0.
    """
    _require_same_length("predicted_before", predicted_before, truth)
    _require_same_length("predicted_after", predicted_after, truth)
    _require_same_length("clusters", clusters, truth)
    before, after = _one_hot(predicted_before, truth), _one_hot(predicted_after, truth)
    true = _one_hot(truth, truth)

    def change(weights: Floats) -> Floats:
        return _macro_f1(weights, after, true) - _macro_f1(weights, before, true)

    count = cluster_count(clusters)
    point = float(change(np.ones((1, len(truth))))[0])
    values = bootstrap_replicates(change, clusters) if count > 1 else np.empty(0)
    by_class = _recall_changes(predicted_before, predicted_after, truth, clusters)

    def limits(confidence: float) -> tuple[float, float]:
        if count == 1:
            return -math.inf, math.inf
        low, high = percentile_limits(values, point, count, confidence)
        below, above = _mover(by_class, confidence)
        return min(low, point - below), max(high, point + above)

    found = Interval(point, 0, 0, 0, len(truth), count)
    return decide_by_limits(limits, found, METHOD, alpha, margin)


def _recall_changes(
    before: Sequence[str], after: Sequence[str], truth: Sequence[str], clusters: Sequence[str]
) -> list[ClusteredSample]:
    """Return the changes of right/wrong scores among the items of each class."""
    true, names = np.asarray(truth, dtype=object), np.asarray(clusters, dtype=object)
    differences = (np.asarray(after, dtype=object) == true).astype(np.float64)
    differences -= np.asarray(before, dtype=object) == true
    return [
        clustered_sample(differences[true == label], list(names[true == label]))
        for label in set(truth)
    ]


def _mover(by_class: list[ClusteredSample], confidence: float) -> tuple[float, float]:
    """Return the distances of the MOVER limits below and above the mean change of recall."""
    below = above = 0.0
    for sample in by_class:
        low, high = tango_limits(*effective_counts(sample), confidence)
        below += (sample.delta - low) ** 2
        above += (high - sample.delta) ** 2
    return math.sqrt(below) / len(by_class), math.sqrt(above) / len(by_class)


def _one_hot(labels: Sequence[str], truth: Sequence[str]) -> Floats:
    """Encode labels as (items, classes of the truth); other labels give a row of zeros."""
    classes = np.asarray(sorted(set(truth)), dtype=object)
    return np.asarray(np.asarray(labels, dtype=object)[:, None] == classes, dtype=np.float64)


def _macro_f1(weights: Floats, predicted: Floats, true: Floats) -> Floats:
    """Compute macro-F1 of each resample over the classes with items in it.

    Args:
        weights: (resamples, items).
        predicted: (items, classes), one-hot.
        true: (items, classes), one-hot.

    Returns:
        (resamples,), mean of 2 TP / (TP + FP + TP + FN).
    """
    totals = weights @ np.concatenate([predicted * true, predicted, true], axis=1)
    hits, predictions, support = np.split(totals, 3, axis=1)
    f1 = 2 * hits / np.maximum(predictions + support, 1e-300)
    return np.asarray(f1.sum(axis=1, where=support > 0) / (support > 0).sum(axis=1))


def _require_same_length(name: str, values: Sequence[str], truth: Sequence[str]) -> None:
    if not len(truth):
        raise ValueError("truth: no items to compare")
    if len(values) != len(truth):
        raise ValueError(f"{name}: expected {len(truth)} items (got {len(values)})")
