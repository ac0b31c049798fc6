"""Paired right/wrong scores: score limits, exact tests and their exact power.

Among n items, `won` are right only with the second arm and `lost` only with the first. The
difference of the two proportions is delta = (won - lost) / n. Items that both arms get right or
wrong contribute only to n. A margin is a loss: the tests are of delta = -margin, and a negative
margin is a gain.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from statsmodels.stats.contingency_tables import mcnemar

from lora_kit.statistics.clusters import Floats

TIE_TOLERANCE = 1e-9
"""Difference below which two statistics are equal but for rounding."""


def tango_score(won: Any, lost: Any, items: float, margin: float) -> Floats:
    """Compute Tango's score statistic for delta = -margin; large if the loss is below the margin.

    Tango (1998, Statistics in Medicine 17:891, equations 9 to 12): with d = -margin,
    (won - lost - n d) / sqrt(n (2 q + d (1 - d))), where q is the maximum-likelihood estimate of
    the probability of a loss under delta = d, the larger root of 2n q^2 + b q + c. At d = 0, the
    statistic is McNemar's (won - lost) / sqrt(won + lost), or 0 without flips.

    Args:
        won: (...), number of items won; not necessarily an integer after division by a design
            effect.
        lost: (...), number of items lost.
        items: number of all items.
        margin: margin in (-1, 1).

    Returns:
        (...) float64, approximately standard normal if delta is -margin.
    """
    won, lost = np.asarray(won, np.float64), np.asarray(lost, np.float64)
    d = -margin
    b = (2 * items - won + lost) * d - won - lost
    c = -lost * d * (1 - d)
    q = (np.sqrt(np.maximum(b * b - 8 * items * c, 0)) - b) / (4 * items)
    variance = items * np.maximum(2 * np.maximum(q, 0) + d * (1 - d), 0)
    distance = won - lost - items * d
    safe = np.where(variance > 0, variance, 1.0)
    return np.asarray(np.where(variance > 0, distance / np.sqrt(safe), 0.0))


def score_p(won: float, lost: float, items: float, margin: float) -> float:
    """Return the one-sided p-value of a loss of the margin or more, by normal approximation."""
    return float(stats.norm.sf(tango_score(won, lost, items, margin)))


def tango_limits(won: float, lost: float, items: float, confidence: float) -> tuple[float, float]:
    """Return two-sided limits of delta: the range that the score test does not reject.

    Tango (1998), as in `tango_score`. Unlike Wald's limits, they have a positive width without
    flips.

    Args:
        won: number of items won, not necessarily an integer.
        lost: number of items lost.
        items: number of all items.
        confidence: two-sided confidence level, such as 0.95.

    Raises:
        ValueError: without items, or with more flips than items.
    """
    _require_valid_counts(won, lost, items)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    delta, edge = (won - lost) / items, 1 - 1e-9

    def limit(end: float, target: float) -> float:
        def residual(value: float) -> float:
            return float(tango_score(won, lost, items, -value)) - target

        start = min(max(delta, -edge), edge)
        if residual(start) * residual(end * edge) >= 0:
            return end
        return float(optimize.brentq(residual, start, end * edge, xtol=1e-12))

    return limit(-1.0, z), limit(1.0, -z)


def mcnemar_p(won: int, lost: int) -> float:
    """Return the two-sided exact p-value of equally likely wins and losses (McNemar 1947)."""
    if won + lost == 0:
        return 1.0
    return float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue)


def sign_p(won: float, lost: float) -> float:
    """Return the one-sided exact p-value of wins that are no likelier than losses.

    Half of `mcnemar_p` where there are more wins. The binomial tail as an incomplete beta function,
    which counts need not be integers for; 1 without wins.
    """
    return float(special.betainc(won, lost + 1, 0.5)) if won > 0 else 1.0


def tail_probability(
    threshold: float, items: int, margin: float, won_rate: Floats, lost_rate: Floats
) -> Floats:
    """Compute the exact P(score >= threshold) for given probabilities of wins and losses.

    The score increases with the wins among a given number of flips, so the rejected outcomes with f
    flips are those with at least w(f) wins: sum over f of P(f flips) P(at least w(f) wins | f).

    Args:
        threshold: threshold of `tango_score` at this margin.
        items: number of all items.
        margin: margin of the score.
        won_rate: (points,), probability of a win.
        lost_rate: (points,), probability of a loss.

    Returns:
        (points,) float64.
    """
    rate = np.clip(won_rate + lost_rate, 0.0, 1.0)[:, None]
    share = np.divide(won_rate[:, None], rate, out=np.zeros_like(rate), where=rate > 0)
    # Flips within 7 standard deviations; all others together have a probability below 1e-11.
    half = math.ceil(7 * math.sqrt(items * float((rate * (1 - rate)).max()))) + 10
    window = np.rint(items * rate).astype(np.int64) + np.arange(-half, half + 1)
    flips = np.clip(window, 0, items)
    flipped = np.where(flips == window, stats.binom.pmf(flips, items, rate), 0.0)
    wins = _fewest_wins(threshold, items, margin)[flips]
    # P(at least w of f) is a regularised incomplete beta function, and 1 for w = 0.
    reached = special.betainc(
        np.maximum(wins, 1), np.maximum(flips - wins + 1, 1), np.clip(share, 0, 1)
    )
    reached = np.where(wins == 0, 1.0, np.where(wins > flips, 0.0, reached))
    return np.asarray(np.minimum((flipped * reached).sum(axis=1), 1.0))


def exact_p(won: float, lost: float, items: float, margin: float) -> float:
    """Return the one-sided exact unconditional p-value of a loss of the margin or more.

    The p-value is the largest P(score >= observed score) over all flip rates with delta = -margin
    (Sidik 2003, Statistics in Medicine 22:265; Berger & Sidik 2003, Statistical Methods in Medical
    Research 12:91, who recommend ordering outcomes by the score statistic). For the p-value of a
    loss of the margin or less, use `exact_p(lost, won, items, -margin)`.

    Args:
        won: number of items won, not necessarily an integer.
        lost: number of items lost, not necessarily an integer.
        items: number of all items; rounded down to enumerate the outcomes.
        margin: margin in (-1, 1).

    Raises:
        ValueError: without items, or with more flips than items.
    """
    _require_valid_counts(won, lost, items)
    observed = float(tango_score(won, lost, items, margin))
    return _worst_tail(observed, math.floor(items + TIE_TOLERANCE), margin)


@lru_cache(maxsize=1024)
def critical_score(items: int, margin: float, alpha: float) -> float:
    """Return the smallest score at which both the score test and the exact test reject at alpha.

    The result is accurate to 2e-4, found by bisection since the tail probability is a step
    function; infinite if no outcome rejects.
    """
    low = float(stats.norm.isf(alpha))
    if _worst_tail(low, items, margin) <= alpha:
        return low
    high = low + 0.5
    while _worst_tail(high, items, margin) > alpha:
        if high > math.sqrt(items) * 10:
            return math.inf
        low, high = high, high + 1.0
    while high - low > 2e-4:
        middle = (low + high) / 2
        if _worst_tail(middle, items, margin) <= alpha:
            high = middle
        else:
            low = middle
    return high


def _worst_tail(threshold: float, items: int, margin: float) -> float:
    """Return the largest tail probability over flip rates from |margin| (losses only) to 1.

    The tail oscillates with the flip rate, with a period of sqrt(rate (1 - rate) / n). The grid is
    therefore uniform in the arcsine of the rate's square root, and refined around the maximum.
    """

    def tail(angles: Floats) -> Floats:
        rate = abs(margin) + (1 - abs(margin)) * np.sin(angles) ** 2
        return tail_probability(threshold, items, margin, (rate - margin) / 2, (rate + margin) / 2)

    angles = np.linspace(0.0, math.pi / 2, 20 + math.ceil(4 * math.sqrt(items)))
    coarse = tail(angles)
    top = int(coarse.argmax())
    near = np.linspace(angles[max(top - 1, 0)], angles[min(top + 1, len(angles) - 1)], 15)
    return float(max(coarse[top], tail(near).max()))


def _fewest_wins(threshold: float, items: int, margin: float) -> NDArray[np.int64]:
    """Return the fewest wins that reach the threshold for each number of flips, (items + 1,).

    The value is flips + 1 if no number of wins reaches the threshold. Vectorized bisection.
    """
    flips = np.arange(items + 1)
    low, high = np.zeros(items + 1, np.int64), flips + 1
    for _ in range(items.bit_length() + 1):
        middle = (low + high) // 2
        reached = tango_score(middle, flips - middle, items, margin) >= threshold - TIE_TOLERANCE
        high = np.where(reached, middle, high)
        low = np.where(reached, low, np.minimum(middle + 1, high))
    return np.asarray(high)


def _require_valid_counts(won: float, lost: float, items: float) -> None:
    if items < 1 - TIE_TOLERANCE:
        raise ValueError("items: no items to compare")
    if min(won, lost) < 0 or won + lost > items + TIE_TOLERANCE:
        raise ValueError(f"won, lost: impossible counts (got {won} and {lost} of {items} items)")
