"""Items that are not independent: cluster totals, their robust t, and the cluster bootstrap.

What a cluster is, is decided here alone: the items of one name. Whole clusters are the units that
are drawn, by the bootstrap as by whoever made the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights of shape (resamples, items) to values of shape (resamples,)."""
RESAMPLES = 1_999
"""Of the bootstrap. The tail beyond a limit at 2.5% is then known to 0.3 points."""
DRAWN = 4_000_000
"""Numbers of a batch of resamples, 32 MB."""
SUPPOSED = 3
"""Clusters flipping as a whole that are supposed besides those seen, see `design_effect_seen`."""


@dataclass(frozen=True)
class Sample:
    """Paired differences summed over clusters, and the cluster-robust error of their mean.

    The mean is a ratio of cluster totals, its variance that of Cochran (1977, equation 6.13):
    C / (C - 1) * sum of (total - mean * count)^2 / items^2.

    Attributes:
        sums: (clusters,), total of the differences.
        counts: (clusters,), items.
        won: items whose difference is above 0.
        lost: items whose difference is below 0.
        flipped: clusters in which any difference is not 0.
        delta: mean difference of the items.
        error: robust standard error of `delta`; infinite with one cluster.
        skewness: of the clusters' residuals, without small-sample bias; 0 below three clusters.
        deviation: standard deviation of the items' differences; 0 with one item.
    """

    sums: Floats
    counts: Floats
    won: int
    lost: int
    flipped: int
    delta: float
    error: float
    skewness: float
    deviation: float

    @property
    def items(self) -> int:
        """All of them."""
        return int(self.counts.sum())

    @property
    def clusters(self) -> int:
        """Differently named."""
        return len(self.sums)


def cluster_index(clusters: Sequence[str]) -> NDArray[np.int64]:
    """(items,): the number of each item's cluster, from 0."""
    _, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    return np.asarray(index, dtype=np.int64)


def sample(differences: Floats, clusters: Sequence[str]) -> Sample:
    """Sum differences over clusters.

    Args:
        differences: (items,).
        clusters: (items,).

    Raises:
        ValueError: without items, if the lengths differ, or if a difference is no finite number.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) == 0:
        raise ValueError("no items to compare")
    if len(differences) != len(clusters):
        raise ValueError(f"{len(differences)} differences but {len(clusters)} names of clusters")
    if not np.isfinite(differences).all():
        raise ValueError("a difference is not a finite number")
    index = cluster_index(clusters)
    sums = np.asarray(np.bincount(index, weights=differences), dtype=np.float64)
    counts = np.asarray(np.bincount(index), dtype=np.float64)
    delta = float(differences.mean())
    residuals = sums - delta * counts
    # Equal differences leave only what rounding leaves.
    residuals[np.abs(residuals) <= 1e-12 * np.abs(sums)] = 0.0
    total = len(sums)
    error = (
        math.sqrt(total / (total - 1) * float((residuals**2).sum())) / len(differences)
        if total > 1
        else math.inf
    )
    return Sample(
        sums=sums,
        counts=counts,
        won=int((differences > 0).sum()),
        lost=int((differences < 0).sum()),
        flipped=int((np.bincount(index, weights=np.abs(differences)) > 0).sum()),
        delta=delta,
        error=error,
        skewness=float(stats.skew(residuals, bias=False)) if total > 2 and error > 0 else 0.0,
        deviation=float(differences.std(ddof=1)) if len(differences) > 1 else 0.0,
    )


def mirrored(found: Sample) -> Sample:
    """The same with the arms exchanged."""
    return replace(
        found,
        sums=-found.sums,
        won=found.lost,
        lost=found.won,
        delta=-found.delta,
        skewness=-found.skewness,
    )


def robust_limits(found: Sample, confidence: float) -> tuple[float, float]:
    """The cluster-robust t interval, each limit moved out as far as skewness asks for.

    A few great losses among many small gains make the mean and its error small together, so that
    the t limit lies too high. Hall (1992, Journal of the Royal Statistical Society B 54:221) gives
    the monotone cubic of t that is normal to the second order; a limit is the outer one of it and
    of plain t. Of one-sided limits at 5% that many lie beyond the truth, plain and corrected: of 50
    exponential losses 9% and 6.5%, of 200 of them 6% and 4.7%; of 50 log-normal ones (skewness 6)
    13% and 8%.
    """
    if not math.isfinite(found.error):
        return -math.inf, math.inf
    q = float(stats.t.ppf(0.5 + confidence / 2, found.clusters - 1))
    return (
        found.delta - found.error * max(q, _untransformed(q, found)),
        found.delta - found.error * min(-q, _untransformed(-q, found)),
    )


def robust_p(found: Sample, line: float) -> float:
    """One-sided p that the true mean is at the line or below it, in step with `robust_limits`."""
    if not math.isfinite(found.error):
        return 1.0
    distance = found.delta - line
    if found.error == 0:
        return 0.0 if distance > 0 else 1.0
    t = distance / found.error
    return float(stats.t.sf(min(t, _transformed(t, found)), found.clusters - 1))


def _bend(found: Sample) -> float:
    return found.skewness / (3 * math.sqrt(found.clusters))


def _transformed(t: float, found: Sample) -> float:
    """Hall (1992), g(t) = t + b t^2 + b^2 t^3 / 3 + b / 2 with b = skewness / (3 sqrt(C))."""
    b = _bend(found)
    return t + b * t**2 + b**2 * t**3 / 3 + b / 2


def _untransformed(q: float, found: Sample) -> float:
    b = _bend(found)
    if abs(b) < 1e-8:
        return q
    return float(np.cbrt(1 + 3 * b * (q - b / 2)) - 1) / b


def design_effect_seen(found: Sample) -> float:
    """How many items count as one independent item, at least 1 (Kish 1965, section 5.4).

    For right/wrong scores. The robust variance over that of independent items; but few clusters
    that flipped tell little of whether flips come in whole clusters, and none tell nothing. So
    three clusters that flip as a whole are supposed besides those seen: their design effect, the
    number of items of an item's cluster, has the weight 3, the one seen the number of clusters that
    flipped. Where nothing flipped in clusters of equal size, the effective items are the clusters.
    (Of 40 clusters of 10 that lose 5%, correlated by 0.5, 13% pass without them and 5% with them.)
    """
    whole = float((found.counts**2).sum() / found.counts.sum())
    naive = found.deviation / math.sqrt(found.items)
    seen = min((found.error / naive) ** 2, whole) if naive > 0 else whole
    weighted = (found.flipped * seen + SUPPOSED * whole) / (found.flipped + SUPPOSED)
    return max(weighted, 1.0)


def bootstrap_limits(found: Sample, confidence: float) -> tuple[float, float]:
    """Percentile limits of the mean over resampled clusters.

    Whole clusters are drawn with replacement and the statistic is the ratio of sums (Davison &
    Hinkley 1997, section 3.8, strategy 1).
    """
    if found.clusters == 1:
        return -math.inf, math.inf
    # Deviations from the mean, so that rounding is relative to them. Sums by einsum, not by BLAS,
    # which gives other last digits on other machines and waits for its threads on busy ones.
    residuals = found.sums - found.delta * found.counts
    drawn = [
        np.einsum("rc,c->r", draws, residuals) / np.einsum("rc,c->r", draws, found.counts)
        for draws in _batches(found.clusters)
    ]
    tail = 0.5 - confidence / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return found.delta + float(low), found.delta + float(high)


def replicates(statistic: Statistic, clusters: Sequence[str]) -> Floats:
    """(resamples,): a statistic over resampled clusters; one value per resample that has one.

    Raises:
        ValueError: if the statistic has no value for more than a tenth of the resamples.
    """
    index = cluster_index(clusters)
    rows = max(1, DRAWN // len(index))
    values = [
        statistic(draws[start : start + rows][:, index])
        for draws in _batches(int(index.max()) + 1)
        for start in range(0, len(draws), rows)
    ]
    found = np.concatenate(values)
    found = found[np.isfinite(found)]
    if len(found) < 0.9 * RESAMPLES:
        raise ValueError("the statistic has no value for too many resamples")
    return found


def percentile_limits(
    values: Floats, point: float, clusters: int, confidence: float
) -> tuple[float, float]:
    """Percentile limits, drawn out from the point where there are few clusters.

    The bootstrap's spread is that of C clusters without a degree of freedom taken off: distances
    from the point are multiplied by t(C - 1) / z * sqrt(C / (C - 1)) (Hesterberg 2015, The American
    Statistician 69:371, section 3.2).

    Args:
        values: (resamples,).
        point: the statistic of the items as they are.
        clusters: C.
        confidence: two-sided.
    """
    if clusters == 1:
        return -math.inf, math.inf
    tail = 0.5 - confidence / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    wider = float(stats.t.isf(tail, clusters - 1) / stats.norm.isf(tail))
    wider *= math.sqrt(clusters / (clusters - 1))
    return (
        point - wider * max(point - float(low), 0.0),
        point + wider * max(float(high) - point, 0.0),
    )


def _batches(clusters: int) -> Iterator[Floats]:
    """Of shape (some resamples, clusters): how often each cluster is drawn; always the same."""
    rows = min(RESAMPLES, max(1, DRAWN // clusters))
    for start in range(0, RESAMPLES, rows):
        yield _drawn(clusters, min(rows, RESAMPLES - start), start)


@lru_cache(maxsize=1)
def _drawn(clusters: int, rows: int, seed: int) -> Floats:
    picked = np.random.default_rng(seed).integers(clusters, size=(rows, clusters))
    picked += clusters * np.arange(rows)[:, None]
    counts = np.bincount(picked.ravel(), minlength=rows * clusters)
    return np.asarray(counts.reshape(rows, clusters), dtype=np.float64)
