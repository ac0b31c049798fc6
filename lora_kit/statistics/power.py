"""How many items it takes, and what a number of items can show, before anything is trained.

The questions are those of the tests in `statistics`, of items that are their own clusters: a gain
on two sides, retention on one. Where items come in clusters, multiply by `design_effect`.

The spread of the differences is named in one of two ways: `flip_rate`, for right/wrong scores, is
the part of the items that only one arm gets right; `deviation`, for other scores, is the standard
deviation of the items' differences in the score's unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.power import TTestPower

from lora_kit.statistics.proportions import critical_score, score, tail_probability

Alternative = Literal["two-sided", "larger"]
POWER = 0.8
EXACT = 400
"""Items up to which the power of retention is that of the outcomes themselves."""
EXACT_GAIN = 4_000
"""The same for gain, whose test is quicker."""
NEARLY_NORMAL = 2_000
"""Items from which a t distribution is taken as normal."""


def design_effect(cluster_size: float, icc: float) -> float:
    """How many items count as one independent item, 1 + (m - 1) icc (Kish 1965, section 5.4).

    Args:
        cluster_size: mean number m of items of a cluster.
        icc: intra-cluster correlation of the differences.

    Raises:
        ValueError: for a size below 1 or a correlation outside 0 to 1.
    """
    if cluster_size < 1 or not 0 <= icc <= 1:
        raise ValueError(f"no clusters of {cluster_size} items with a correlation of {icc}")
    return 1 + (cluster_size - 1) * icc


def items_to_show_gain(
    effect: float,
    alpha: float,
    power: float = POWER,
    *,
    deviation: float | None = None,
    flip_rate: float | None = None,
) -> int:
    """Items for a two-sided test to find a true gain.

    Right/wrong scores: the smallest n near Connor's (1987, Biometrics 43:207) at which the exact
    McNemar test has the power. Others: the paired t test.

    Args:
        effect: the true difference; its sign does not matter.
        alpha: of the two-sided test.
        power: probability to find it.
        deviation: of differences that are no flips.
        flip_rate: of right/wrong scores, at least the effect.

    Raises:
        ValueError: if the effect is 0 or more than the flips, or not one spread is given.
    """
    effect = abs(effect)
    if effect == 0:
        raise ValueError("no number of items shows a gain of 0")
    if _one_spread(deviation, flip_rate, effect) == "deviation":
        assert deviation is not None
        return _t_items(effect, deviation, alpha, power, "two-sided")
    assert flip_rate is not None
    flips = flip_rate
    z, z_power = float(stats.norm.isf(alpha / 2)), float(stats.norm.ppf(power))
    near = (z * math.sqrt(flips) + z_power * math.sqrt(flips - effect**2)) ** 2 / effect**2
    # The exact test is discrete and costs about 1 / effect items more.
    start = math.ceil(near + 1 / effect)
    return _search(start, power, EXACT_GAIN, lambda items: _gain_power(items, effect, alpha, flips))


def items_to_retain(
    margin: float,
    alpha: float,
    power: float = POWER,
    *,
    deviation: float | None = None,
    flip_rate: float | None = None,
    delta: float = 0.0,
) -> int:
    """Items for a one-sided test to find that the loss is less than the margin.

    Right/wrong scores: (z_alpha sqrt(v0) + z_power sqrt(v1))^2 / (margin + delta)^2, with v1 the
    variance of a difference and v0 that of the score test, at its constrained estimate (Tango 1998,
    section 4); up to 400 items the smallest n near it at which the exact test has the power.
    Others: the paired t test; few great losses among many small gains take about a quarter more
    (exponential ones have a power of 0.71 at the 71 items that are planned for 0.8).

    Args:
        margin: greatest loss that is allowed.
        alpha: of the one-sided test.
        power: probability to pass.
        deviation: of differences that are no flips.
        flip_rate: of right/wrong scores, wins and losses together; 0 asks for the items from which
            an adapter that flips nothing passes.
        delta: the true difference.

    Raises:
        ValueError: if delta is not above -margin, beyond the flips, or not one spread is given.
    """
    if delta <= -margin:
        raise ValueError(f"a difference of {delta} is no less of a loss than the margin {margin}")
    if _one_spread(deviation, flip_rate, abs(delta)) == "deviation":
        assert deviation is not None
        return _t_items(margin + delta, deviation, alpha, power, "larger")
    assert flip_rate is not None
    flips = flip_rate
    start = math.ceil(_score_items(margin, alpha, power, flips, delta))
    return _search(
        start, power, EXACT, lambda items: _retention_power(items, margin, alpha, flips, delta)
    )


def smallest_gain(
    items: int,
    alpha: float,
    power: float = POWER,
    *,
    deviation: float | None = None,
    flip_rate: float | None = None,
) -> float | None:
    """The smallest true gain that so many items show; arguments as `items_to_show_gain`.

    Returns:
        `None` if they show none: not even if all flips are wins, or with a single item.
    """
    if _one_spread(deviation, flip_rate, 0.0) == "deviation":
        assert deviation is not None
        return _t_effect(items, deviation, alpha, power, "two-sided")
    assert flip_rate is not None
    flips = flip_rate
    if _gain_power(items, flips, alpha, flips) < power:
        return None
    return float(
        optimize.brentq(
            lambda effect: _gain_power(items, effect, alpha, flips) - power, 0.0, flips, xtol=1e-6
        )
    )


def smallest_margin(
    items: int,
    alpha: float,
    power: float = POWER,
    *,
    deviation: float | None = None,
    flip_rate: float | None = None,
) -> float | None:
    """The smallest margin that so many items of an adapter without a loss keep within.

    Arguments as `items_to_retain`.

    Returns:
        `None` if they keep within none, with a single item whose score is not right or wrong.
    """
    if _one_spread(deviation, flip_rate, 0.0) == "deviation":
        assert deviation is not None
        return _t_effect(items, deviation, alpha, power, "larger")
    assert flip_rate is not None
    flips = flip_rate

    def missing(margin: float) -> float:
        if items > EXACT:
            return _score_items(margin, alpha, power, flips, 0.0) / items - 1
        return power - _retention_power(items, margin, alpha, flips, 0.0)

    low, high = 0.0, 1.0
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if missing(middle) > 0 else (low, middle)
    return high


def _one_spread(
    deviation: float | None, flip_rate: float | None, effect: float
) -> Literal["deviation", "flip_rate"]:
    if deviation is not None and flip_rate is None:
        if deviation < 0:
            raise ValueError(f"a deviation of {deviation} is negative")
        return "deviation"
    if flip_rate is None or deviation is not None:
        raise ValueError("give either a deviation or a flip rate")
    if not effect - 1e-12 <= flip_rate <= 1:
        raise ValueError(f"a flip rate of {flip_rate} is not between {effect} and 1")
    return "flip_rate"


def _search(start: int, power: float, most: int, power_at: Callable[[int], float]) -> int:
    """The smallest n near `start` that has the power, in steps of a percent; `start` above `most`.

    Exact power is a saw: it falls by a tooth where one more flip becomes possible.
    """
    if start > most:
        return start
    items, step = start, max(1, start // 100)
    while power_at(items) < power:
        items += step
        if items > 2 * most:
            return items
    while items - step >= 1 and power_at(items - step) >= power:
        items -= step
    return items


def _gain_power(items: int, effect: float, alpha: float, flip_rate: float) -> float:
    """Exact P(two-sided McNemar rejects, in the right direction)."""
    flips = np.arange(items + 1)
    wins = stats.binom.isf(alpha / 2, flips, 0.5) + 1
    share = (flip_rate + effect) / (2 * flip_rate)
    # P(at least w of f wins), as a regularised incomplete beta function; no wins suffice if w > f.
    reached = special.betainc(wins, np.maximum(flips - wins + 1, 1), share)
    found = stats.binom.pmf(flips, items, flip_rate) * np.where(wins > flips, 0.0, reached)
    return float(found.sum())


def _retention_power(
    items: int, margin: float, alpha: float, flip_rate: float, delta: float
) -> float:
    """Exact P(score test and exact test pass)."""
    threshold = critical_score(items, margin, alpha)
    if not math.isfinite(threshold):
        return 0.0
    won, lost = np.array([(flip_rate + delta) / 2]), np.array([(flip_rate - delta) / 2])
    return float(tail_probability(threshold, items, margin, won, lost)[0])


def _score_items(
    margin: float, alpha: float, power: float, flip_rate: float, delta: float
) -> float:
    """The normal approximation of `items_to_retain`."""
    distance = margin + delta
    # The score of the expected flips of one item is distance / sqrt(v0).
    expected = float(score((flip_rate + delta) / 2, (flip_rate - delta) / 2, 1.0, margin))
    root = float(stats.norm.isf(alpha)) * distance / expected
    root += float(stats.norm.ppf(power)) * math.sqrt(max(flip_rate - delta**2, 0.0))
    return (root / distance) ** 2


def _t_items(
    effect: float, deviation: float, alpha: float, power: float, alternative: Alternative
) -> int:
    if deviation == 0:
        return 2
    z = float(stats.norm.isf(alpha / 2 if alternative == "two-sided" else alpha))
    near = ((z + float(stats.norm.ppf(power))) * deviation / effect) ** 2
    items = max(2, math.ceil(near))
    while items < NEARLY_NORMAL and _t_power(items, effect / deviation, alpha, alternative) < power:
        items += 1
    return items


def _t_effect(
    items: int, deviation: float, alpha: float, power: float, alternative: Alternative
) -> float | None:
    if items < 2:
        return None
    if deviation == 0:
        return 0.0
    if items >= NEARLY_NORMAL:
        z = float(stats.norm.isf(alpha / 2 if alternative == "two-sided" else alpha))
        return (z + float(stats.norm.ppf(power))) * deviation / math.sqrt(items)
    return deviation * float(
        optimize.brentq(
            lambda effect: _t_power(items, effect, alpha, alternative) - power, 1e-9, 100.0
        )
    )


def _t_power(items: int, effect: float, alpha: float, alternative: Alternative) -> float:
    found = float(TTestPower().power(effect, items, alpha, alternative=alternative))
    # Far out the noncentral t has no value; there the power is 1.
    return 1.0 if math.isnan(found) else found
