"""Looks at a task's items: how many clusters each has, its level, and when to give up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from lora_kit.statistics.spending import look_levels

# Clusters that a look adds at least. With fewer, right/wrong scores have so few values that the
# levels of early looks are mostly lost, and power with them.
LEAST_CLUSTERS = 40
# The same for graded scores of a task that would be asked at once: they have no such steps. Skewed
# ones exceed the small levels of looks at few clusters (with a shape of -4, a loss of the margin
# passed 1.1 points more often than by the fixed test), so that only what is beyond doubt ends. Two
# looks at right/wrong scores are as steep: the level of the second one skips a step of the exact
# test as soon as the first one has spent something (4.8 points of power at 100 items).
FEW_CLUSTERS, STEEP_SHAPE = 12, -10.0
# A task ends undecided if both decisions together are less probable than this.
LEAST_POWER = 0.05
# Look of a level so small that no interval is computed at it.
LEAST_LEVEL = 1e-9
# Smallest and largest p-value that a statistic is computed from.
P_RANGE = 1e-300, 1 - 1e-16
# Paths that the expected number of items is averaged over: to about 0.3% of the items.
PATHS = 20_000


@dataclass(frozen=True)
class Looks:
    """Looks at growing data.

    Attributes:
        ends: clusters that are asked by the end of each look; the last number is all of them.
        alpha: one-sided error of all looks.
        shape: shape of the spending, as in `spending.spent_error`.
    """

    ends: tuple[int, ...]
    alpha: float
    shape: float

    @classmethod
    def plan(
        cls, clusters: int, looks: int, alpha: float, shape: float, graded: bool = False
    ) -> Looks:
        """Cut clusters into looks of equal size, fewer than wished where there are few clusters.

        Args:
            clusters: number of clusters, at least 1.
            looks: number of looks, at least 1.
            alpha: one-sided error of all looks.
            shape: as in `spending.spent_error`.
            graded: true for scores of many values, such as losses; false for right and wrong.
        """
        count, few = (min(looks, clusters // least) for least in (LEAST_CLUSTERS, FEW_CLUSTERS))
        if graded and count < 2 <= few:
            count, shape = few, min(shape, STEEP_SHAPE)
        elif count == 2 and not graded:
            shape = min(shape, STEEP_SHAPE)
        count = max(count, 1)
        ends = tuple(math.ceil(clusters * (n + 1) / count) for n in range(count))
        return cls(ends, alpha, shape)

    @classmethod
    def fixed(cls, alpha: float) -> Looks:
        """Return a single look at all data, however many there are."""
        return cls((1,), alpha, 0.0)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the clusters that is asked by the end of each look."""
        return tuple(end / self.ends[-1] for end in self.ends)

    @property
    def levels(self) -> tuple[float, ...]:
        """One-sided level of each look."""
        return _levels(self.shares, self.alpha, self.shape)

    def look(self, number: int) -> Look:
        """Return one of the looks, counted from 1."""
        return Look(self, number)

    def expected_share(self, effect: float) -> float:
        """Return the share of the clusters that is asked on average.

        Computed on random walks with independent increments, which end at the bounds of both
        decisions and where `Look.is_futile`.

        Args:
            effect: true distance from the threshold, in standard errors of all clusters.
        """
        shares = np.array(self.shares)
        steps = np.diff(shares, prepend=0.0)
        random = np.random.default_rng(0)
        walks = np.cumsum(
            random.normal(effect * steps, np.sqrt(steps), (PATHS, len(steps))), axis=1
        )
        asked, going = np.full(PATHS, shares[-1]), np.ones(PATHS, dtype=bool)
        for n, share in enumerate(shares[:-1]):
            z = walks[:, n] / math.sqrt(share)
            ends = np.abs(z) >= norm.isf(self.levels[n])
            ends |= power_left(z, share, self.levels[-1]) < LEAST_POWER
            asked[going & ends] = share
            going &= ~ends
        return float(asked.mean())


@dataclass(frozen=True)
class Look:
    """One look at growing data.

    Attributes:
        looks: all looks.
        number: number of this one, from 1.
    """

    looks: Looks
    number: int

    @property
    def is_last(self) -> bool:
        """True if nothing is left to ask."""
        return self.number == len(self.looks)

    @property
    def level(self) -> float:
        """One-sided level of this look."""
        return max(self.looks.levels[self.number - 1], LEAST_LEVEL)

    @property
    def nominal_confidence(self) -> float:
        """Two-sided confidence level that an interval of this look is computed at."""
        return 1 - 2 * self.level

    @property
    def confidence(self) -> float:
        """Two-sided confidence level that the intervals of all looks hold together."""
        return 1 - 2 * self.looks.alpha

    def repeated_p(self, p: float) -> float:
        """Return the smallest error of all looks with which this look would reject.

        Valid whenever one stops (Jennison & Turnbull 1989, JRSS B 51:305, section 2.4).

        Args:
            p: one-sided p-value of the data so far.

        Returns:
            One-sided p-value, at least `p`; 1 where it is above the level of an error of a half.
        """
        if len(self.looks) == 1:
            return p
        shares, shape = self.looks.shares, self.looks.shape

        def level(log_error: float) -> float:
            return _levels(shares, math.exp(log_error), shape)[self.number - 1]

        low, high = math.log(max(p, P_RANGE[0])), math.log(0.5)
        if p >= level(high):
            return 1.0
        if p < level(math.log(LEAST_LEVEL)):
            return LEAST_LEVEL
        low = max(low, math.log(LEAST_LEVEL))
        return math.exp(brentq(lambda log: level(log) - p, low, high, xtol=1e-4))

    def is_futile(self, p_values: tuple[float, float]) -> bool:
        """Return true if a decision at the last look is improbable.

        Not binding: the levels hold as well for a task that is asked on.

        Args:
            p_values: one-sided p-values of both decisions so far.
        """
        if self.is_last:
            return False
        share, level = self.looks.shares[self.number - 1], self.looks.levels[-1]
        # Exact tests are conservative on both sides; their mean is not.
        toward, away = (float(norm.isf(np.clip(p, *P_RANGE))) for p in p_values)
        z = (toward - away) / 2
        return float(power_left(z, share, level)) < LEAST_POWER


@lru_cache(maxsize=4096)
def _levels(shares: tuple[float, ...], alpha: float, shape: float) -> tuple[float, ...]:
    return (alpha,) if len(shares) == 1 else look_levels(shares, alpha, shape)


def ordered_clusters(clusters: Sequence[str], seed: int, task: str) -> tuple[str, ...]:
    """Return the distinct clusters in an order drawn from a seed.

    The place of a cluster does not depend on the others, so that a task of more items has the
    clusters of one of fewer in the same order; nor on the folder of the file that it is named
    after.

    Args:
        clusters: cluster of each item.
        seed: seed of the suite.
        task: name of suite and task.
    """

    def place(name: str) -> tuple[bytes, str]:
        drawn = f"{seed}/{task}/{name.rpartition('/')[2]}"
        return sha256(drawn.encode()).digest(), name

    return tuple(sorted(set(clusters), key=place))


def power_left(z: Any, share: float, level: float) -> Any:
    """Return the probability that the last look decides, one way or the other.

    Predictive power (Spiegelhalter, Freedman & Blackburn 1986, Controlled Clinical Trials 7:8): the
    conditional power of both decisions, averaged over the effects that the data so far allow. Under
    the observed effect alone, early looks would give up tasks that can still be decided.

    Args:
        z: statistic so far, in standard errors from the threshold; a number or an array.
        share: share of the data so far, below 1.
        level: one-sided level of the last look.
    """
    bound, left = norm.isf(level), math.sqrt((1 - share) / share)
    ahead = z / math.sqrt(share)
    return ndtr((ahead - bound) / left) + ndtr((-ahead - bound) / left)
