"""Decisions on scores of all items together, by limits from resampled clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from lora_kit.statistics.bootstrap import Statistic, bootstrap_replicates, percentile_limits
from lora_kit.statistics.clusters import Floats, cluster_count
from lora_kit.statistics.decisions import Interval, PairedComparison, interval_decision
from lora_kit.statistics.power import Z_POWER

LimitsByConfidence = Callable[[float], tuple[float, float]]
"""Function from a two-sided confidence level to lower and upper limit."""
METHOD = "cluster bootstrap"
MIN_P = 1e-3
"""Smallest p-value that the number of resamples can resolve."""


def compare_statistics(
    before: Statistic,
    after: Statistic,
    clusters: Sequence[str],
    alpha: float,
    margin: float | None,
    higher_is_better: bool = True,
) -> PairedComparison:
    """Decide on a gain (margin `None`, two-sided) or retention (one-sided) of a statistic.

    The limits are percentile limits of the cluster bootstrap, widened for few clusters.

    Args:
        before: statistic of the first arm, from weights of the items.
        after: statistic of the second arm.
        clusters: (items,), cluster name of each item.
        alpha: level of the test.
        margin: largest acceptable loss, above 0; `None` for gain.
        higher_is_better: false for an error.

    Raises:
        ValueError: without items, or if the margin is not above 0.
    """
    change = change_of(before, after, higher_is_better)
    count = cluster_count(clusters)
    point = float(change(np.ones((1, len(clusters))))[0])
    values = bootstrap_replicates(change, clusters) if count > 1 else np.empty(0)

    def limits(confidence: float) -> tuple[float, float]:
        if count == 1:
            return -math.inf, math.inf
        return percentile_limits(values, point, count, confidence)

    found = Interval(point, 0, 0, 0, len(clusters), count)
    return decide_by_limits(limits, found, METHOD, alpha, margin)


def change_of(before: Statistic, after: Statistic, higher_is_better: bool = True) -> Statistic:
    """Return the difference of two statistics, positive where `after` is better."""
    sign = 1.0 if higher_is_better else -1.0

    def change(weights: Floats) -> Floats:
        return sign * (after(weights) - before(weights))

    return change


def items_to_decide_by_width(interval: Interval, margin: float | None) -> int | None:
    """Return the items that decide with power 0.8, from the width of an interval.

    Args:
        interval: interval of the difference, at the level of the decision.
        margin: margin of retention; `None` for gain.

    Returns:
        Number of items; `None` if no number decides, or nothing is known of the width.
    """
    distance = abs(interval.delta - (0.0 if margin is None else -margin))
    if distance == 0 or not math.isfinite(interval.low):
        return None
    z = float(stats.norm.ppf(0.5 + interval.confidence / 2))
    error = (interval.high - interval.low) / 2 / z
    needed = math.ceil(interval.items * ((z + Z_POWER) * error / distance) ** 2)
    return max(needed, interval.items + 1)


def decide_by_limits(
    limits: LimitsByConfidence, point: Interval, method: str, alpha: float, margin: float | None
) -> PairedComparison:
    """Decide by the limits.

    Args:
        limits: limits of the difference, by confidence level.
        point: difference and counts; its limits are placeholders.
        method: description of the limits.
        alpha: level of the test.
        margin: margin of retention; `None` for gain.

    Raises:
        ValueError: if the margin is not above 0.
    """
    if margin is not None and margin <= 0:
        raise ValueError(f"margin: not above 0 (got {margin})")
    threshold, sides = (0.0, 2) if margin is None else (-margin, 1)
    confidence = 1 - 2 * alpha / sides
    low, high = limits(confidence)
    decision = interval_decision(low, high, threshold)
    one_sided = (_one_sided_p(limits, threshold, True), _one_sided_p(limits, threshold, False))
    is_lower = margin is not None or point.delta > 0
    p = min(1.0, sides * one_sided[not is_lower])
    interval = replace(point, low=low, high=high, confidence=confidence)
    return PairedComparison(interval, p, method, decision, one_sided)


def _one_sided_p(limits: LimitsByConfidence, threshold: float, is_lower: bool) -> float:
    """Return the smallest one-sided level at which the lower (upper) limit clears the threshold.

    Found by bisection of the log level, to 1% of the level.
    """

    def clears(level: float) -> bool:
        low, high = limits(1 - 2 * level)
        return low > threshold if is_lower else high < threshold

    small, large = math.log(MIN_P), math.log(0.4999)
    if clears(math.exp(small)):
        return MIN_P
    if not clears(math.exp(large)):
        return 1.0
    while large - small > 0.01:
        middle = (small + large) / 2
        small, large = (small, middle) if clears(math.exp(middle)) else (middle, large)
    return math.exp(large)
