"""Intervals of paired differences, and what they decide. Functions of arrays, nothing else.

A difference is always oriented: positive means that the second arm is better. A limit and the
decision never disagree: where an exact test does not reject the line that a limit has cleared, the
limit is drawn out to the line.

What is tested by what:

* right/wrong scores (differences of -1, 0 and 1), each item its own cluster: Tango's score
  interval, and for a gain the exact McNemar test, for retention up to 5,000 items the exact
  unconditional test (`proportions`);
* others, each item its own cluster or not: the widest of the cluster bootstrap and the
  cluster-robust t interval with its correction for skewness (`clusters`);
* right/wrong scores in clusters: that, and Tango's interval of the effective number of items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lora_kit.statistics.clusters import (
    Sample,
    Statistic,
    bootstrap_limits,
    cluster_index,
    design_effect_seen,
    mirrored,
    percentile_limits,
    replicates,
    robust_limits,
    robust_p,
    sample,
)
from lora_kit.statistics.power import items_to_retain, items_to_show_gain
from lora_kit.statistics.proportions import exact_p, mcnemar_p, score_p, tango_limits

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE"]
EXACT_ITEMS = 5_000
"""Items up to which retention is tested exactly, in about 0.1 s. Beyond, the score test alone at 5%
has a true level of at most 5.1% (between 1,000 and 5,000 items 5.3%, at 100 items 5.5%)."""


@dataclass(frozen=True)
class Interval:
    """A mean difference with its two-sided confidence interval."""

    delta: float
    low: float
    high: float
    confidence: float
    items: int
    clusters: int


@dataclass(frozen=True)
class Comparison:
    """A difference, the test of it, and what it decides.

    Attributes:
        interval: of the difference, at the confidence that the decision takes.
        p: of the test that decides. Gain: two-sided, that the difference is 0. Retention:
            one-sided, that the loss is the margin or more.
        method: in words, for the report.
        decision: PASS is better (not worse than the margin) for sure, FAIL worse (than the margin)
            for sure.
        items_needed: items that decide at the observed difference, spread and design effect, with a
            power of 0.8; only if INCONCLUSIVE, and `None` where no number does.
    """

    interval: Interval
    p: float
    method: str
    decision: Decision
    items_needed: int | None


def superiority(
    differences: NDArray[np.float64], clusters: Sequence[str], alpha: float, binary: bool
) -> Comparison:
    """Gain: better for sure, worse for sure, or neither.

    Args:
        differences: (items,), positive where the second arm is better.
        clusters: (items,), items of the same name are not independent.
        alpha: of the two-sided test; the interval is of 1 - alpha.
        binary: whether each difference is -1, 0 or 1, of scores that are right or wrong.

    Raises:
        ValueError: without items, if the lengths differ, or if a difference is not what it should
            be.
    """
    found = _sample(differences, clusters, binary)
    interval = _interval(found, 1 - alpha, binary)
    better = _p_below(found, 0.0, binary)
    worse = _p_below(mirrored(found), 0.0, binary)
    p = min(1.0, 2 * min(better, worse))
    if _alone(found, binary):
        p = mcnemar_p(found.won, found.lost)
        method = "exact McNemar test, score interval (Tango)"
    else:
        method = _method(binary)
    return _compared(found, interval, p, (p <= alpha, p <= alpha), method, None, binary)


def non_inferiority(
    differences: NDArray[np.float64],
    clusters: Sequence[str],
    alpha: float,
    margin: float,
    binary: bool,
) -> Comparison:
    """Retention: not worse than the margin for sure, worse than it for sure, or neither.

    Not significant is not safe: the pessimistic limit has to clear the margin.

    Args:
        differences: (items,), positive where the second arm is better.
        clusters: (items,), items of the same name are not independent.
        alpha: of the one-sided test; the interval is of 1 - 2 alpha.
        margin: greatest loss that is allowed, above 0.
        binary: whether each difference is -1, 0 or 1, of scores that are right or wrong.

    Raises:
        ValueError: as `superiority`, or if the margin is not above 0.
    """
    if margin <= 0:
        raise ValueError(f"a margin of {margin} is not above 0")
    found = _sample(differences, clusters, binary)
    interval = _interval(found, 1 - 2 * alpha, binary)
    p = _p_below(found, -margin, binary)
    worse = _p_below(mirrored(found), margin, binary)
    if not _alone(found, binary):
        method = _method(binary)
    elif found.items <= EXACT_ITEMS:
        method = "score interval (Tango), exact unconditional test"
    else:
        method = "score interval (Tango)"
    return _compared(found, interval, p, (p <= alpha, worse <= alpha), method, margin, binary)


def loss_p(differences: NDArray[np.float64], clusters: Sequence[str], binary: bool) -> float:
    """One-sided p that nothing was lost, for alarms over tasks and slices.

    Right/wrong scores that are their own clusters: the exact McNemar test (binomial); others: the
    cluster-robust t, for right/wrong scores no smaller than the score test of the effective items.

    Raises:
        ValueError: as `superiority`.
    """
    found = _sample(differences, clusters, binary)
    if _alone(found, binary):
        # P(at least so many losses of the flips); 1 where nothing flipped.
        return float(stats.binom.sf(found.lost - 1, found.won + found.lost, 0.5))
    return _p_below(mirrored(found), 0.0, binary)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values that keep the family-wise error (Holm 1979, Scandinavian J. Stat. 6:65)."""
    if not len(p_values):
        return ()
    return tuple(float(p) for p in multipletests(list(p_values), method="holm")[1])


def decided(low: float, high: float, line: float) -> Decision:
    """Above the line for sure, below it for sure, or neither."""
    if low > line:
        return "PASS"
    return "FAIL" if high < line else "INCONCLUSIVE"


def combined(decisions: Sequence[Decision]) -> Decision:
    """All have to pass (intersection-union, Berger 1982): no correction for their number."""
    if "FAIL" in decisions:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in decisions or not decisions else "PASS"


def paired_interval(
    differences: NDArray[np.float64],
    clusters: Sequence[str],
    confidence: float,
    binary: bool,
) -> Interval:
    """The interval of a mean paired difference; see the head of the module for its kind.

    Percentile limits of few clusters are too narrow (of 400 draws without a difference, 14% seemed
    a gain at 3 clusters), and neither they nor t can imagine a flip that did not happen.

    Args:
        differences: (items,), positive where the second arm is better.
        clusters: (items,), items of the same name are not independent.
        confidence: two-sided, such as 0.95.
        binary: whether each difference is -1, 0 or 1.

    Raises:
        ValueError: as `superiority`.
    """
    return _interval(_sample(differences, clusters, binary), confidence, binary)


def bootstrap_statistic(
    statistic: Statistic, clusters: Sequence[str], confidence: float
) -> tuple[float, float]:
    """Limits of a statistic that is no mean, such as a difference of macro-F1.

    Whole clusters are drawn with replacement; percentile limits, drawn out where there are few
    clusters (`clusters.percentile_limits`).

    Args:
        statistic: from weights of shape (resamples, items), how often an item was drawn, to values
            of shape (resamples,); NaN where it has no value.
        clusters: (items,).
        confidence: two-sided.

    Raises:
        ValueError: without items, or if a tenth of the resamples have no value.
    """
    point = float(statistic(np.ones((1, len(clusters))))[0])
    count = int(cluster_index(clusters).max()) + 1
    if count == 1:
        return -math.inf, math.inf
    return percentile_limits(replicates(statistic, clusters), point, count, confidence)


def _sample(differences: NDArray[np.float64], clusters: Sequence[str], binary: bool) -> Sample:
    if binary and not np.isin(differences, (-1, 0, 1)).all():
        raise ValueError("a difference of right/wrong scores is -1, 0 or 1")
    return sample(differences, clusters)


def _alone(found: Sample, binary: bool) -> bool:
    """Whether these are right/wrong scores of which each is its own cluster."""
    return binary and 1 < found.items == found.clusters


def _method(binary: bool) -> str:
    words = "cluster bootstrap, no narrower than cluster-robust t corrected for skewness"
    return f"{words}, nor than Tango's of the effective items" if binary else words


def _effective(found: Sample, binary: bool) -> tuple[float, float, float]:
    """Won, lost and all items, as many as they count for."""
    effect = 1.0 if _alone(found, binary) else design_effect_seen(found)
    return found.won / effect, found.lost / effect, found.items / effect


def _interval(found: Sample, confidence: float, binary: bool) -> Interval:
    limits = []
    if not _alone(found, binary):
        limits += [bootstrap_limits(found, confidence), robust_limits(found, confidence)]
    if binary and found.clusters > 1:
        limits.append(tango_limits(*_effective(found, binary), confidence))
    low, high = min(pair[0] for pair in limits), max(pair[1] for pair in limits)
    return Interval(found.delta, low, high, confidence, found.items, found.clusters)


def _p_below(found: Sample, line: float, binary: bool) -> float:
    """One-sided p that the true difference is at the line or below, the largest of the tests."""
    tests = [] if _alone(found, binary) else [robust_p(found, line)]
    if binary and found.clusters > 1:
        won, lost, items = _effective(found, binary)
        tests.append(score_p(won, lost, items, -line))
        if line != 0 and items <= EXACT_ITEMS:
            tests.append(exact_p(won, lost, items, -line))
    return max(tests)


def _compared(
    found: Sample,
    interval: Interval,
    p: float,
    cleared: tuple[bool, bool],
    method: str,
    margin: float | None,
    binary: bool,
) -> Comparison:
    """Decide: a side is cleared if its test rejects and its limit lies beyond the line."""
    line = 0.0 if margin is None else -margin
    if not cleared[0]:
        interval = replace(interval, low=min(interval.low, line))
    if not cleared[1]:
        interval = replace(interval, high=max(interval.high, line))
    decision = decided(interval.low, interval.high, line)
    needed = None
    on_the_line = math.isclose(found.delta, line, abs_tol=1e-9)
    reachable = not binary or line > -1
    if decision == "INCONCLUSIVE" and found.clusters > 1 and reachable and not on_the_line:
        needed = _items_needed(found, interval.confidence, margin, binary)
    return Comparison(interval, p, method, decision, needed)


def _items_needed(found: Sample, confidence: float, margin: float | None, binary: bool) -> int:
    """Items that decide at what was observed, in the direction in which it lies."""
    if binary:
        scale = found.items / _effective(found, binary)[2]
        flip_rate, deviation = (found.won + found.lost) / found.items, None
    else:
        # In clusters, so that the degrees of freedom are theirs.
        scale = found.items / found.clusters
        flip_rate, deviation = None, found.error * math.sqrt(found.clusters)
    if margin is None:
        alone = items_to_show_gain(
            found.delta, 1 - confidence, deviation=deviation, flip_rate=flip_rate
        )
    else:
        side = 1 if found.delta > -margin else -1
        alone = items_to_retain(
            side * margin,
            0.5 - confidence / 2,
            deviation=deviation,
            flip_rate=flip_rate,
            delta=side * found.delta,
        )
    return max(math.ceil(alone * scale), found.items + 1)
