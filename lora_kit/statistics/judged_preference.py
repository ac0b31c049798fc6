"""Preferences that a fallible judge gives, corrected by its measured sensitivity and specificity.

A judge says of each item which of two answers is better: 1 for the second arm's, 0 for the first
arm's, 1/2 for a tie. With sensitivity a (its mean score where the second answer is truly better)
and specificity c (1 minus its mean score where the first one is), the mean judged score of items
with a true preference T is E[J] = 1 - c + (a + c - 1) E[T] (Rogan & Gladen 1978, American Journal
of Epidemiology 107:71); true ties are taken to be judged half-way between. Solved for E[T], both
the judged items and the labelled pairs behind a and c are samples. The interval is Fieller's (1954,
Journal of the Royal Statistical Society B 16:175): all differences that the data do not reject. It
becomes the whole range where the judge is not shown to be better than chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lora_kit.statistics.clusters import Floats, clustered_sample
from lora_kit.statistics.decisions import Interval, PairedComparison, interval_decision

METHOD = "judged preference, corrected for the judge's errors (Rogan and Gladen; Fieller)"


@dataclass(frozen=True)
class JudgeAccuracy:
    """Agreement of a judge with labelled pairs.

    Attributes:
        sensitivity: mean judged score of the second arm's answer where it is labelled better.
        sensitive_pairs: number of these pairs.
        specificity: mean judged score of the first arm's answer where it is labelled better.
        specific_pairs: number of these pairs.
        symmetric: true if the labels do not say which arm an answer is of: then both values are of
            the same pairs, and the judge is taken to err as often either way.
    """

    sensitivity: float
    sensitive_pairs: int
    specificity: float
    specific_pairs: int
    symmetric: bool


@dataclass(frozen=True)
class _Quadratic:
    """Estimating function h - g d of a difference d, with the variance v0 + v1 d + v2 d^2."""

    h: float
    g: float
    v0: float
    v1: float
    v2: float
    degrees: float
    bound: float

    def p_at_or_below(self, difference: float) -> float:
        """Return the one-sided p-value of a true difference at or below this one."""
        error = math.sqrt(self.v0 + self.v1 * difference + self.v2 * difference**2)
        return float(stats.t.sf((self.h - self.g * difference) / error, self.degrees))

    def limits(self, alpha: float) -> tuple[float, float] | None:
        """Return the limits with confidence 1 - alpha; `None` if every difference is possible."""
        q = float(stats.t.ppf(1 - alpha / 2, self.degrees)) ** 2
        a = self.g**2 - q * self.v2
        if self.g <= 0 or a <= 0:
            return None
        b, c = -2 * self.h * self.g - q * self.v1, self.h**2 - q * self.v0
        root = math.sqrt(max(b**2 - 4 * a * c, 0.0))
        low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
        # Both limits: of scores that the labels hardly allow, all differences may be out of range.
        low, high = np.clip([low, high], -self.bound, self.bound)
        return float(low), float(high)


def compare_preference(
    differences: Floats,
    clusters: Sequence[str],
    accuracy: JudgeAccuracy,
    alpha: float,
    margin: float | None,
    with_first: bool,
) -> PairedComparison:
    """Decide on a preference, in shares of the items.

    Args:
        differences: (items,), judged scores minus 1/2 or, of two arms that were both judged against
            the first one, the difference of their judged scores.
        clusters: (items,), cluster name of each item.
        accuracy: agreement of the judge with labelled pairs.
        alpha: level of the test, two-sided for gain and one-sided for retention.
        margin: largest acceptable loss, above 0; `None` for gain.
        with_first: true for judged scores minus 1/2.

    Raises:
        ValueError: without items, if the lengths differ, or if a difference is not finite.
    """
    sample = clustered_sample(differences, clusters)
    bound = 0.5 if with_first else 1.0
    sides = alpha if margin is None else 2 * alpha
    threshold = -(margin or 0.0)
    solved = _quadratic(differences, clusters, accuracy, with_first)
    limits = solved.limits(sides) if solved else None
    if solved is None or limits is None:
        unknown = Interval(sample.delta, -bound, bound, 1 - sides, sample.items, sample.clusters)
        return PairedComparison(unknown, 1.0, METHOD, "INCONCLUSIVE", (1.0, 1.0))
    delta = float(np.clip(solved.h / solved.g, -bound, bound))
    better = solved.p_at_or_below(threshold)
    p = min(1.0, 2 * min(better, 1 - better)) if margin is None else better
    return PairedComparison(
        Interval(delta, *limits, 1 - sides, sample.items, sample.clusters),
        p,
        METHOD,
        interval_decision(*limits, threshold),
        (better, 1 - better),
    )


def corrected_preference(judged: float, accuracy: JudgeAccuracy) -> float:
    """Return the share of items whose second answer is truly better, of a mean judged score.

    The judged score itself if the judge agrees with no more labels than chance.
    """
    a, _, c, _ = _smoothed(accuracy)
    if a + c <= 1:
        return judged
    return float(np.clip((judged - 1 + c) / (a + c - 1), 0.0, 1.0))


def _quadratic(
    differences: Floats, clusters: Sequence[str], accuracy: JudgeAccuracy, with_first: bool
) -> _Quadratic | None:
    """Return the estimating function of the difference; `None` with a single cluster."""
    sample = clustered_sample(differences, clusters)
    if sample.clusters == 1:
        return None
    a, var_a, c, var_c = _smoothed(accuracy)
    # Equal scores have a spread that this sample does not show.
    width = 1.0 if with_first else 2.0
    share = (width * sample.items * (sample.delta / width + 0.5) + 1) / (width * sample.items + 2)
    unseen = width**2 * share * (1 - share) / (sample.items + 2) if sample.error == 0 else 0.0
    own = sample.error**2 + unseen
    h, g = sample.delta, a + c - 1
    # Degrees of freedom of Welch and Satterthwaite at no difference, where labels weigh least for
    # a preference, and at the estimate: the fewer of the two.
    if accuracy.symmetric:
        v0, v1, v2 = own, 0.0, 4 * var_a
        parts = [(own, sample.clusters - 1), (v2 * (h / g) ** 2 if g else 0.0, _degrees(accuracy))]
    else:
        first = (var_a + var_c) / 4 if with_first else 0.0
        v0, v1, v2 = own + first, (var_a - var_c) if with_first else 0.0, var_a + var_c
        if with_first:
            h -= (a - c) / 2
        at = first + v2 * (h / g) ** 2 if g else first
        parts = [(own, sample.clusters - 1), (at, _degrees(accuracy))]
    degrees = sum(v for v, _ in parts) ** 2 / sum(v**2 / n for v, n in parts)
    return _Quadratic(h, g, v0, v1, v2, degrees, 0.5 if with_first else 1.0)


def _degrees(accuracy: JudgeAccuracy) -> int:
    return max(min(accuracy.sensitive_pairs, accuracy.specific_pairs) - 1, 1)


def _smoothed(accuracy: JudgeAccuracy) -> tuple[float, float, float, float]:
    """Return both shares with their variances, each with a pair more that is right and one wrong.

    The variance is that of shares of right and wrong, the largest that scores of 0 to 1 can have.
    """
    found = []
    for share, pairs in (
        (accuracy.sensitivity, accuracy.sensitive_pairs),
        (accuracy.specificity, accuracy.specific_pairs),
    ):
        mean = (share * pairs + 1) / (pairs + 2)
        found += [mean, mean * (1 - mean) / (pairs + 2)]
    return found[0], found[1], found[2], found[3]
