"""Cluster bootstrap: percentile limits of means and of other statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from scipy import stats

from lora_kit.statistics.clusters import ClusteredSample, Floats, cluster_count, cluster_index

Statistic = Callable[[Floats], Floats]
"""Function from weights, (resamples, items), to values, (resamples,)."""
RESAMPLES = 1_999
"""Number of resamples. The tail probability beyond a 2.5% limit is then known to 0.3 points."""
BATCH_NUMBERS = 4_000_000
"""Numbers in a batch of resamples, 32 MB."""
MIN_DEFINED = 0.9
"""Share of the resamples that need a value, for limits to be known."""
SMALL_BATCH = 500_000
"""Numbers in a batch that is kept beside others, 4 MB, since sizes of tasks and looks alternate."""


def bootstrap_limits(sample: ClusteredSample, confidence: float) -> tuple[float, float]:
    """Return percentile limits of the mean over resampled clusters.

    Complete clusters are drawn with replacement, and the statistic is the ratio of sums (Davison &
    Hinkley 1997, section 3.8, strategy 1).

    Args:
        sample: clustered sample.
        confidence: two-sided confidence level, such as 0.95.
    """
    if sample.clusters == 1:
        return -math.inf, math.inf
    # Deviations from the mean, so that rounding is relative to them. einsum instead of BLAS, whose
    # last digits differ between machines and whose threads wait on busy ones.
    residuals = sample.sums - sample.delta * sample.counts
    deviations = [
        np.einsum("rc,c->r", draws, residuals) / np.einsum("rc,c->r", draws, sample.counts)
        for draws in _batches(sample.clusters)
    ]
    tail = 0.5 - confidence / 2
    low, high = np.quantile(np.concatenate(deviations), [tail, 1 - tail])
    return sample.delta + float(low), sample.delta + float(high)


def bootstrap_statistic(
    statistic: Statistic, clusters: Sequence[str], confidence: float
) -> tuple[float, float]:
    """Return limits of a statistic that is not a mean, such as a difference of ECE.

    Complete clusters are drawn with replacement; the percentile limits are widened for few clusters
    (`percentile_limits`).

    Args:
        statistic: function from weights, (resamples, items), the number of times each item was
            drawn, to values, (resamples,); NaN where the statistic is undefined.
        clusters: (items,), cluster name of each item.
        confidence: two-sided confidence level, such as 0.95.

    Raises:
        ValueError: without items.
    """
    point = float(statistic(np.ones((1, len(clusters))))[0])
    count = cluster_count(clusters)
    if count == 1:
        return -math.inf, math.inf
    return percentile_limits(bootstrap_replicates(statistic, clusters), point, count, confidence)


def bootstrap_replicates(statistic: Statistic, clusters: Sequence[str]) -> Floats:
    """Return the finite values of a statistic over resampled clusters, at most `RESAMPLES`."""
    index = cluster_index(clusters)
    rows = max(1, BATCH_NUMBERS // len(index))
    batches = [
        statistic(draws[start : start + rows][:, index])
        for draws in _batches(int(index.max()) + 1)
        for start in range(0, len(draws), rows)
    ]
    values = np.concatenate(batches)
    return np.asarray(values[np.isfinite(values)])


def percentile_limits(
    values: Floats, point: float, clusters: int, confidence: float
) -> tuple[float, float]:
    """Return percentile limits, widened around the point estimate for few clusters.

    The bootstrap's spread lacks the correction for one degree of freedom: distances from the point
    are multiplied by t(C - 1) / z * sqrt(C / (C - 1)) (Hesterberg 2015, The American Statistician
    69:371, section 3.2). Nothing is known of a statistic without a value for the items, or for more
    than a tenth of the resamples, such as the F1 of a type that hardly an item has.

    Args:
        values: (resamples,), finite replicates of the statistic.
        point: statistic of the original items.
        clusters: number of clusters C, at least 2.
        confidence: two-sided confidence level, such as 0.95.
    """
    if len(values) < MIN_DEFINED * RESAMPLES or not math.isfinite(point):
        return -math.inf, math.inf
    tail = 0.5 - confidence / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    factor = float(stats.t.isf(tail, clusters - 1) / stats.norm.isf(tail))
    factor *= math.sqrt(clusters / (clusters - 1))
    return (
        point - factor * max(point - float(low), 0.0),
        point + factor * max(float(high) - point, 0.0),
    )


def _batches(clusters: int) -> Iterator[Floats]:
    """Yield the number of draws of each cluster, (some resamples, clusters); deterministic."""
    rows = min(RESAMPLES, max(1, BATCH_NUMBERS // clusters))
    draw_counts = _small_counts if rows * clusters <= SMALL_BATCH else _large_counts
    for start in range(0, RESAMPLES, rows):
        yield draw_counts(clusters, min(rows, RESAMPLES - start), start)


def _draw_counts(clusters: int, rows: int, seed: int) -> Floats:
    drawn = np.random.default_rng(seed).integers(clusters, size=(rows, clusters))
    drawn += clusters * np.arange(rows)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=rows * clusters)
    return np.asarray(counts.reshape(rows, clusters), dtype=np.float64)


_small_counts = lru_cache(maxsize=16)(_draw_counts)
_large_counts = lru_cache(maxsize=1)(_draw_counts)
