"""Interval of a recipe's effect, from several adapters that were trained with different seeds.

The differences of adapters and base are crossed: each seed has all items. Both are samples, so that
the variance of the grand mean is at most that between clusters of items, of the means over the
seeds, plus that between the seeds' means (Owen 2007, Annals of Applied Statistics 1:386, where the
product bootstrap of both factors has this expectation, and is conservative by the variance of the
interaction). A bootstrap of three seeds would be too narrow by a third, and a t quantile with the
degrees of freedom of Satterthwaite holds too rarely (measured with three seeds: 92%, not 95%). Each
part has limits of its own; their distances from the mean add up in squares (the method of variance
estimates recovery, Zou & Donner 2008, Statistics in Medicine 27:1693):

* the seeds: the t interval of their means;
* the items, right/wrong scores: Tango's score interval of the mean wins and losses, which has a
  width without flips too, and in clusters no narrower than the next;
* the items, other scores: the cluster-robust t interval with its correction for skewness.

Of right/wrong scores, the exact test of the items has to reject as well, as for a single adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from lora_kit.statistics.clusters import (
    ClusteredSample,
    Floats,
    clustered_sample,
    observed_design_effect,
    robust_limits,
    swap_arms,
)
from lora_kit.statistics.decisions import EXACT_ITEMS, Decision, Interval, interval_decision
from lora_kit.statistics.proportions import exact_p, sign_p, tango_limits

SMALLEST_P, LARGEST_P = 1e-12, 0.5 - 1e-6
"""One-sided p-values that are told from 0 and from one half."""
PRIOR_FLIPS = 3
"""Flips of all seeds alike that are added when it is estimated how far the seeds flip alike."""


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
    differences: Floats, clusters: Sequence[str], alpha: float, margin: float | None, binary: bool
) -> SeedComparison:
    """Decide on a recipe.

    Args:
        differences: (seeds, items), positive where an adapter is better than the base.
        clusters: (items,), cluster name of each item.
        alpha: level of the test, two-sided for gain and one-sided for retention.
        margin: largest acceptable loss, above 0; `None` for gain.
        binary: true for right/wrong scores, with differences of -1, 0 and 1.

    Raises:
        ValueError: with fewer than two seeds, without items, or if a difference is invalid.
    """
    if len(differences) < 2:
        raise ValueError(f"differences: a spread needs two seeds at least (got {len(differences)})")
    if binary and not np.isin(differences, (-1, 0, 1)).all():
        raise ValueError("differences: a difference of right/wrong scores is not -1, 0 or 1")
    effect = _Effect(differences, clustered_sample(differences.mean(axis=0), clusters), binary)
    items, threshold = effect.items, -(margin or 0.0)
    sides = alpha if margin is None else 2 * alpha
    better = effect.p_at_or_below(threshold)
    worse = _Effect(-differences, swap_arms(items), binary).p_at_or_below(-threshold)
    low, high = effect.limits(sides / 2)
    # A limit clears the threshold only where the test of its side rejects.
    low = min(low, threshold) if better > sides / 2 else low
    high = max(high, threshold) if worse > sides / 2 else high
    return SeedComparison(
        Interval(items.delta, low, high, 1 - sides, items.items, items.clusters),
        min(1.0, 2 * min(better, worse)) if margin is None else better,
        interval_decision(low, high, threshold),
        tuple(differences.mean(axis=1).tolist()),
        _deviation(differences, clusters),
    )


@dataclass(frozen=True)
class _Effect:
    """Differences of all seeds, and the sample of their means over the seeds.

    Attributes:
        differences: (seeds, items).
        items: sample of the items' means over the seeds.
        binary: true for right/wrong scores.
    """

    differences: Floats
    items: ClusteredSample
    binary: bool

    def limits(self, level: float) -> tuple[float, float]:
        """Return both limits, each of a one-sided level."""
        delta, seeds = self.items.delta, len(self.differences)
        spread = float(self.differences.mean(axis=1).std(ddof=1)) / math.sqrt(seeds)
        of_seeds = spread * float(stats.t.isf(level, seeds - 1))
        low, high = self._limits_of_items(1 - 2 * level)
        return delta - math.hypot(delta - low, of_seeds), delta + math.hypot(high - delta, of_seeds)

    def _limits_of_items(self, confidence: float) -> tuple[float, float]:
        items, limits = self.items, []
        if not self.binary and items.error == 0 and items.delta != 0:
            # Equal differences have no spread to estimate an interval from.
            return -math.inf, math.inf
        if not self.binary or items.clusters < items.items or items.items == 1:
            limits.append(robust_limits(items, confidence))
        if self.binary and items.clusters > 1:
            limits.append(tango_limits(*self._counts, confidence))
        return min(low for low, _ in limits), max(high for _, high in limits)

    @property
    def _counts(self) -> tuple[float, float, float]:
        """Mean wins and losses of a seed, and the items, each as independent answers.

        Seeds that flip the same items count once. Those that flip unlike ones say more: the
        variance of independent flips is the sum of the means' sizes, that of the means the sum of
        their squares, and the answers are as many times more. Without flips, each item counts once.
        """
        means = self.differences.mean(axis=0)
        won, lost = float(means.clip(0).sum()), float((-means).clip(0).sum())
        answers = (won + lost + PRIOR_FLIPS) / (float((means**2).sum()) + PRIOR_FLIPS)
        effect = observed_design_effect(self.items) / answers
        return won / effect, lost / effect, self.items.items / effect

    def p_at_or_below(self, threshold: float) -> float:
        """Return the one-sided p-value of a true mean at or below a threshold."""
        if self.items.delta <= threshold:
            return 1 - _level_of(lambda level: self.limits(level)[1] - threshold)
        p = _level_of(lambda level: threshold - self.limits(level)[0])
        if self.binary and self.items.clusters > 1:
            won, lost, items = self._counts
            if threshold == 0:
                p = max(p, sign_p(won, lost))
            elif items <= EXACT_ITEMS:
                p = max(p, exact_p(won, lost, items, -threshold))
        return p


def _level_of(beyond: Callable[[float], float]) -> float:
    """Return the one-sided level at which a limit reaches a threshold, 0.5 at most.

    Args:
        beyond: distance by which the limit of a level is beyond the threshold, falling in it.
    """
    if beyond(LARGEST_P) >= 0:
        return 0.5
    if beyond(SMALLEST_P) < 0:
        return 0.0
    return float(brentq(beyond, SMALLEST_P, LARGEST_P))


def _deviation(differences: Floats, clusters: Sequence[str]) -> float:
    """Return the deviation of the seeds' true means, by the method of moments."""
    means = differences.mean(axis=1)
    # What the seeds have in common is not noise between them.
    apart, seeds = differences - differences.mean(axis=0), len(differences)
    noise = np.mean([clustered_sample(one, clusters).error ** 2 for one in apart])
    # One of the seeds' degrees of freedom is in the mean that was taken off.
    variance = float(means.var(ddof=1)) - float(noise) * seeds / (seeds - 1)
    return math.sqrt(max(variance, 0.0))
