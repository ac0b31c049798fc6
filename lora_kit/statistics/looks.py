"""Looks at a task's items: how many clusters each has, its level, and when to give up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from scipy.stats import norm

from lora_kit.statistics.spending import look_levels

# Clusters that a look adds at least: of fewer, the intervals of an early level are not known well.
LEAST_CLUSTERS = 20


@dataclass(frozen=True)
class Looks:
    """Looks at growing data.

    Attributes:
        ends: clusters that are asked by the end of each look; the last number is all of them.
        levels: one-sided level of each look; 0 where it cannot decide.
    """

    ends: tuple[int, ...]
    levels: tuple[float, ...]

    @classmethod
    def plan(cls, clusters: int, looks: int, alpha: float, shape: float) -> Looks:
        """Cut clusters into looks of equal size, fewer than wished where there are few clusters.

        Args:
            clusters: number of clusters, at least 1.
            looks: number of looks, at least 1.
            alpha: one-sided error of all looks.
            shape: as in `spending.spent_error`.
        """
        count = max(1, min(looks, clusters // LEAST_CLUSTERS))
        ends = tuple(math.ceil(clusters * (n + 1) / count) for n in range(count))
        return cls(ends, look_levels([end / clusters for end in ends], alpha, shape))

    def share(self, look: int) -> float:
        """Return the share of the clusters that is asked by the end of a look, from 0 on."""
        return self.ends[look] / self.ends[-1]


def ordered_clusters(clusters: Sequence[str], seed: int, task: str) -> tuple[str, ...]:
    """Return the distinct clusters in an order drawn from a seed.

    The place of a cluster does not depend on the others, so that a task of more items has the
    clusters of one of fewer in the same order.

    Args:
        clusters: cluster of each item.
        seed: seed of the suite.
        task: name of suite and task.
    """
    return tuple(
        sorted(
            set(clusters), key=lambda one: (sha256(f"{seed}/{task}/{one}".encode()).digest(), one)
        )
    )


def conditional_power(p: float, share: float, level: float) -> float:
    """Return the probability that a test which has not rejected yet rejects at the last look.

    Under the effect that is observed so far, of a statistic with independent increments (Jennison &
    Turnbull 2000, section 10.2).

    Args:
        p: one-sided p-value so far, above 0.
        share: share of the data so far, below 1.
        level: one-sided level of the last look.
    """
    observed = float(norm.isf(p)) / math.sqrt(share)
    return float(norm.cdf((observed - norm.isf(level)) / math.sqrt(1 - share)))
