"""Paired right/wrong scores: score limits, exact tests and their exact power.

Of n items, `won` were right only with the second arm and `lost` only with the first. The difference
of the two proportions right is delta = (won - lost) / n. Items that both arms got right, or both
wrong, say nothing but that there were no more flips. A margin is a loss: the tests are of
delta = -margin, and a negative margin is a gain.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from statsmodels.stats.contingency_tables import mcnemar

Floats = NDArray[np.float64]
SAME = 1e-9
"""Two statistics nearer than this are the same outcome, computed in another order."""


def score(won: Any, lost: Any, items: float, margin: float) -> Floats:
    """Tango's score statistic for delta = -margin, large where the loss is less than the margin.

    Tango (1998, Statistics in Medicine 17:891, equations 9 to 12): with d = -margin,
    (won - lost - n d) / sqrt(n (2 q + d (1 - d))), where q is the maximum-likelihood estimate of
    the probability of a loss under delta = d, the larger root of 2n q^2 + b q + c. At d = 0 it is
    McNemar's (won - lost) / sqrt(won + lost); 0 where that is 0 / 0.

    Args:
        won: (...), items won; counts that were divided by a design effect need not be whole.
        lost: (...), items lost.
        items: of all, flipped or not.
        margin: in (-1, 1).

    Returns:
        (...), approximately standard normal if delta is -margin.
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
    """One-sided p of a loss of the margin or more, normal approximation of `score`."""
    return float(stats.norm.sf(score(won, lost, items, margin)))


def tango_limits(won: float, lost: float, items: float, confidence: float) -> tuple[float, float]:
    """Two-sided limits of delta: all values that the score test does not reject.

    Tango (1998), as `score`. Unlike Wald's, they have a width where nothing flipped.

    Args:
        won: items won, not necessarily whole.
        lost: items lost.
        items: of all.
        confidence: two-sided, such as 0.95.

    Raises:
        ValueError: without items, or with more flips than items.
    """
    _check(won, lost, items)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    delta, edge = (won - lost) / items, 1 - 1e-9

    def limit(end: float, wanted: float) -> float:
        def off(value: float) -> float:
            return float(score(won, lost, items, -value)) - wanted

        start = min(max(delta, -edge), edge)
        if off(start) * off(end * edge) >= 0:
            return end
        return float(optimize.brentq(off, start, end * edge, xtol=1e-12))

    return limit(-1.0, z), limit(1.0, -z)


def mcnemar_p(won: int, lost: int) -> float:
    """Two-sided exact p that wins and losses are equally likely (McNemar 1947, binomial form)."""
    if won + lost == 0:
        return 1.0
    return float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue)


def tail_probability(
    threshold: float, items: int, margin: float, won_rate: Floats, lost_rate: Floats
) -> Floats:
    """Exact P(score >= threshold) where items are won and lost at the given rates.

    The score rises with the wins among a given number of flips, so that the rejected outcomes of
    f flips are those of at least w(f) wins: sum over f of P(f flips) P(at least w(f) wins | f).

    Args:
        threshold: of `score` at this margin.
        items: of all.
        margin: that the score is of.
        won_rate: (points,), probability of a win.
        lost_rate: (points,), probability of a loss.

    Returns:
        (points,).
    """
    rate = np.clip(won_rate + lost_rate, 0.0, 1.0)[:, None]
    share = np.divide(won_rate[:, None], rate, out=np.zeros_like(rate), where=rate > 0)
    # Numbers of flips within 7 standard deviations, all others have a probability below 1e-11.
    half = math.ceil(7 * math.sqrt(items * float((rate * (1 - rate)).max()))) + 10
    window = np.rint(items * rate).astype(np.int64) + np.arange(-half, half + 1)
    flips = np.clip(window, 0, items)
    flipped = np.where(flips == window, stats.binom.pmf(flips, items, rate), 0.0)
    wins = _fewest_wins(threshold, items, margin)[flips]
    # P(at least w of f) is a regularised incomplete beta function; it is 1 for w = 0.
    reached = special.betainc(
        np.maximum(wins, 1), np.maximum(flips - wins + 1, 1), np.clip(share, 0, 1)
    )
    reached = np.where(wins == 0, 1.0, np.where(wins > flips, 0.0, reached))
    return np.asarray(np.minimum((flipped * reached).sum(axis=1), 1.0))


def exact_p(won: float, lost: float, items: float, margin: float) -> float:
    """One-sided exact unconditional p of a loss of the margin or more.

    The greatest P(score >= the observed) that any rate of flips gives while delta = -margin (Sidik
    2003, Statistics in Medicine 22:265; Berger & Sidik 2003, Statistical Methods in Medical
    Research 12:91, who find the score statistic the one to order outcomes by). That a loss is more
    than the margin, is `exact_p(lost, won, items, -margin)`.

    Args:
        won: items won; where counts are effective ones, the score takes them as they are.
        lost: items lost.
        items: of all; rounded down to say which outcomes there are.
        margin: in (-1, 1).

    Raises:
        ValueError: without items, or with more flips than items.
    """
    _check(won, lost, items)
    return _worst_tail(float(score(won, lost, items, margin)), math.floor(items + SAME), margin)


@lru_cache(maxsize=1024)
def critical_score(items: int, margin: float, alpha: float) -> float:
    """The score from which both the score test and the exact test reject, each at alpha."""
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
    """The greatest tail probability over the rate of flips, from |margin| (one-sided) to 1.

    The tail's waves are of the width sqrt(rate (1 - rate) / n), hence a grid even in the arcsine of
    the rate's root, and a finer one around the highest wave.
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
    """(items + 1,): for each number of flips, the fewest wins that reach the threshold.

    One more than the flips where none reaches it. Found by halving, for all at once.
    """
    flips = np.arange(items + 1)
    low, high = np.zeros(items + 1, np.int64), flips + 1
    for _ in range(items.bit_length() + 1):
        middle = (low + high) // 2
        reached = score(middle, flips - middle, items, margin) >= threshold - SAME
        high = np.where(reached, middle, high)
        low = np.where(reached, low, np.minimum(middle + 1, high))
    return np.asarray(high)


def _check(won: float, lost: float, items: float) -> None:
    if items < 1 - SAME:
        raise ValueError("no items to compare")
    if min(won, lost) < 0 or won + lost > items + SAME:
        raise ValueError(f"{won} won and {lost} lost cannot be of {items} items")
