"""Interval of a recipe's effect, from several adapters that were trained with different seeds.

The differences of adapters and base are crossed: each seed has all items. Both are samples, so that
the variance of the grand mean is at most that between clusters of items, of the means over the
seeds, plus that between the seeds' means (Owen 2007, Annals of Applied Statistics 1:386, where the
product bootstrap of both factors has this expectation, and is conservative by the variance of the
interaction). A bootstrap of three seeds would be too narrow by a third, and a t quantile with the
degrees of freedom of Satterthwaite holds too rarely (measured with three seeds: 92%, not 95%). Each
part has the t quantile of its own degrees of freedom; the half-widths add up in squares (the method
of variance estimates recovery, Zou & Donner 2008, Statistics in Medicine 27:1693).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from lora_kit.statistics.clusters import Floats, clustered_sample
from lora_kit.statistics.decisions import Decision, Interval, interval_decision

SMALLEST_P = 1e-12
"""Smallest p-value that is told from 0."""


@dataclass(frozen=True)
class SeedComparison:
    """Effect of a recipe, over seeds and items.

    Attributes:
        interval: interval of the mean difference, positive where the recipe is better.
        p: p-value of the deciding test: two-sided, of no difference, or one-sided, of a loss of the
            margin or more.
        decision: PASS if significantly better (retention: a loss below the margin), FAIL if
            significantly worse (retention: above the margin).
        by_seed: mean difference of each seed.
        deviation: standard deviation of the seeds' means, beyond what the items' noise explains; 0
            where that explains all of it.
    """

    interval: Interval
    p: float
    decision: Decision
    by_seed: tuple[float, ...]
    deviation: float


def compare_seeds(
    differences: Floats, clusters: Sequence[str], alpha: float, margin: float | None
) -> SeedComparison:
    """Decide on a recipe.

    Args:
        differences: (seeds, items), positive where an adapter is better than the base.
        clusters: (items,), cluster name of each item.
        alpha: level of the test, two-sided for gain and one-sided for retention.
        margin: largest acceptable loss, above 0; `None` for gain.

    Raises:
        ValueError: with fewer than two seeds, without items, or if a difference is not finite.
    """
    seeds = len(differences)
    if seeds < 2:
        raise ValueError(f"differences: a spread needs two seeds at least (got {seeds})")
    items = clustered_sample(differences.mean(axis=0), clusters)
    means = differences.mean(axis=1)
    between = float(means.var(ddof=1)) / seeds
    within = items.error**2
    sides = alpha if margin is None else 2 * alpha
    threshold = -(margin or 0.0)

    # Equal differences have no spread to estimate an interval from.
    has_spread = math.isfinite(within) and (within + between > 0 or items.delta == 0)

    def half_width(one_sided: float) -> float:
        if not has_spread:
            return math.inf
        parts = ((within, items.clusters - 1), (between, seeds - 1))
        return math.sqrt(sum(v * stats.t.isf(one_sided, n) ** 2 for v, n in parts))

    width = half_width(sides / 2)
    low, high = items.delta - width, items.delta + width
    beyond = _level_of(half_width, abs(items.delta - threshold))
    one_sided = beyond if items.delta >= threshold else 1 - beyond
    p = 2 * beyond if margin is None else one_sided
    return SeedComparison(
        Interval(items.delta, low, high, 1 - sides, items.items, items.clusters),
        p,
        interval_decision(low, high, threshold),
        tuple(means.tolist()),
        _deviation(differences, clusters),
    )


def _level_of(half_width: Callable[[float], float], distance: float) -> float:
    """Return the one-sided level at which an interval is as wide as a distance, 0.5 at most."""
    widest = half_width(SMALLEST_P)
    if distance == 0 or math.isinf(widest):
        return 0.5
    if widest < distance:
        return 0.0
    found = brentq(lambda level: half_width(level) - distance, SMALLEST_P, 0.5)
    return float(found)


def _deviation(differences: Floats, clusters: Sequence[str]) -> float:
    """Return the deviation of the seeds' true means, by the method of moments."""
    means = differences.mean(axis=1)
    # What the seeds have in common is not noise between them.
    apart, seeds = differences - differences.mean(axis=0), len(differences)
    noise = np.mean([clustered_sample(one, clusters).error ** 2 for one in apart])
    # One of the seeds' degrees of freedom is in the mean that was taken off.
    variance = float(means.var(ddof=1)) - float(noise) * seeds / (seeds - 1)
    return math.sqrt(max(variance, 0.0))
