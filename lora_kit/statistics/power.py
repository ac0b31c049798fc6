"""Power analysis: required numbers of items, and the effects that a number of items can show.

The tests are those of `decisions` with each item its own cluster: two-sided for gain, one-sided for
retention. For items in clusters, multiply by `design_effect`.

The spread of the differences is a `FlipRate` for right/wrong scores, a `Deviation` for others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.power import TTestPower

from lora_kit.statistics.proportions import critical_score, tail_probability, tango_score

Alternative = Literal["two-sided", "larger"]
POWER = 0.8
"""Probability of showing an effect, or of passing retention."""
Z_POWER = float(stats.norm.ppf(POWER))
EXACT_RETENTION_ITEMS = 400
"""Largest number of items for which the power of retention is computed exactly."""
EXACT_GAIN_ITEMS = 4_000
"""Largest number of items for which the power of gain is computed exactly (a faster test)."""
NORMAL_ITEMS = 2_000
"""Smallest number of items for which the normal distribution replaces t."""


@dataclass(frozen=True)
class FlipRate:
    """Share of items that only one arm gets right, for right/wrong scores."""

    share: float

    def __post_init__(self) -> None:
        """Raise ValueError for a share outside 0 to 1."""
        self.require_at_least(0.0)

    def require_at_least(self, effect: float) -> None:
        """Raise ValueError if the flips cannot make up an effect."""
        if not effect - 1e-12 <= self.share <= 1:
            raise ValueError(f"flip_rate: not between {effect} and 1 (got {self.share})")


@dataclass(frozen=True)
class Deviation:
    """Standard deviation of the items' differences, in the score's unit, for other scores."""

    value: float

    def __post_init__(self) -> None:
        """Raise ValueError for a negative deviation."""
        if self.value < 0:
            raise ValueError(f"deviation: negative (got {self.value})")


Spread = FlipRate | Deviation


def design_effect(cluster_size: float, icc: float) -> float:
    """Return the number of items that count as one independent item (Kish 1965, section 5.4).

    The design effect is 1 + (m - 1) icc.

    Args:
        cluster_size: mean number m of items per cluster.
        icc: intra-cluster correlation of the differences.

    Raises:
        ValueError: for a cluster size below 1 or a correlation outside 0 to 1.
    """
    if cluster_size < 1 or not 0 <= icc <= 1:
        raise ValueError(
            "design effect: requires a cluster size of at least 1 and a correlation from 0 to 1 "
            f"(got a size of {cluster_size} and a correlation of {icc})"
        )
    return 1 + (cluster_size - 1) * icc


def items_to_show_gain(effect: float, alpha: float, spread: Spread) -> int:
    """Return the number of items with which a two-sided test detects a true gain.

    Right/wrong scores: the smallest n near Connor's (1987, Biometrics 43:207) at which the exact
    McNemar test has the power. Others: the paired t test.

    Args:
        effect: true difference; its sign does not matter.
        alpha: level of the two-sided test.
        spread: spread of the differences.

    Raises:
        ValueError: if the effect is 0 or above the flip rate.
    """
    effect = abs(effect)
    if effect == 0:
        raise ValueError("effect: no number of items shows a gain of 0")
    if isinstance(spread, Deviation):
        return _t_items(effect, spread.value, alpha, "two-sided")
    spread.require_at_least(effect)
    flips = spread.share
    z = float(stats.norm.isf(alpha / 2))
    connor = (z * math.sqrt(flips) + Z_POWER * math.sqrt(flips - effect**2)) ** 2 / effect**2
    # The exact test is discrete and needs about 1 / effect more items.
    start = math.ceil(connor + 1 / effect)
    return _smallest_items(
        start, EXACT_GAIN_ITEMS, lambda items: _gain_power(items, effect, alpha, flips)
    )


def items_to_retain(margin: float, alpha: float, spread: Spread, delta: float = 0.0) -> int:
    """Return the number of items with which a one-sided test shows a loss below the margin.

    Right/wrong scores: (z_alpha sqrt(v0) + z_power sqrt(v1))^2 / (margin + delta)^2, with v1 the
    variance of a difference and v0 that of the score test, at its constrained estimate (Tango 1998,
    section 4); up to 400 items the smallest n near it at which the exact test has the power.
    Others: the paired t test. A few large losses among many small gains need about a quarter more
    items (exponential losses have a power of 0.71 at the 71 items planned for 0.8).

    Args:
        margin: largest acceptable loss.
        alpha: level of the one-sided test.
        spread: spread of the differences; without flips, the result is the number of items from
            which an adapter passes.
        delta: true difference.

    Raises:
        ValueError: if delta is not above -margin or exceeds the flip rate.
    """
    if delta <= -margin:
        raise ValueError(f"delta: not above -margin (got {delta} with a margin of {margin})")
    if isinstance(spread, Deviation):
        return _t_items(margin + delta, spread.value, alpha, "larger")
    spread.require_at_least(abs(delta))
    flips = spread.share
    start = math.ceil(_score_items(margin, alpha, flips, delta))
    return _smallest_items(
        start,
        EXACT_RETENTION_ITEMS,
        lambda items: _retention_power(items, margin, alpha, flips, delta),
    )


def smallest_gain(items: int, alpha: float, spread: Spread) -> float | None:
    """Return the smallest true gain that a number of items can show.

    See `items_to_show_gain` for the arguments.

    Returns:
        Gain in the score's unit; `None` with a single item, or if the items show no gain even when
        all flips are wins.
    """
    if isinstance(spread, Deviation):
        return _t_effect(items, spread.value, alpha, "two-sided")
    flips = spread.share
    if _gain_power(items, flips, alpha, flips) < POWER:
        return None
    return float(
        optimize.brentq(
            lambda effect: _gain_power(items, effect, alpha, flips) - POWER, 0.0, flips, xtol=1e-6
        )
    )


def smallest_margin(items: int, alpha: float, spread: Spread) -> float | None:
    """Return the smallest margin for which an adapter without a loss passes retention.

    See `items_to_retain` for the arguments.

    Returns:
        Margin in the score's unit, to 5e-4 for right/wrong scores; `None` with a single item of
        another score, which passes no margin.
    """
    if isinstance(spread, Deviation):
        return _t_effect(items, spread.value, alpha, "larger")
    flips = spread.share

    def is_too_small(margin: float) -> bool:
        if items > EXACT_RETENTION_ITEMS:
            return _score_items(margin, alpha, flips, 0.0) / items - 1 > 0
        return POWER - _retention_power(items, margin, alpha, flips, 0.0) > 0

    low, high = 0.0, 1.0
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if is_too_small(middle) else (low, middle)
    return high


def _smallest_items(start: int, max_exact: int, power_at: Callable[[int], float]) -> int:
    """Search the smallest n near `start` with the power, in steps of a percent.

    Exact power is a sawtooth function of n: it drops where one more flip becomes possible. A start
    above `max_exact` is returned unchanged.
    """
    if start > max_exact:
        return start
    items, step = start, max(1, start // 100)
    while power_at(items) < POWER:
        items += step
        if items > 2 * max_exact:
            return items
    while items - step >= 1 and power_at(items - step) >= POWER:
        items -= step
    return items


def _gain_power(items: int, effect: float, alpha: float, flip_rate: float) -> float:
    """Return the exact P(two-sided McNemar test rejects in the right direction)."""
    flips = np.arange(items + 1)
    share = (flip_rate + effect) / (2 * flip_rate)
    rejected = stats.binom.sf(stats.binom.isf(alpha / 2, flips, 0.5), flips, share)
    return float((stats.binom.pmf(flips, items, flip_rate) * rejected).sum())


def _retention_power(
    items: int, margin: float, alpha: float, flip_rate: float, delta: float
) -> float:
    """Return the exact P(score test and exact test both pass)."""
    threshold = critical_score(items, margin, alpha)
    if not math.isfinite(threshold):
        return 0.0
    won, lost = np.array([(flip_rate + delta) / 2]), np.array([(flip_rate - delta) / 2])
    return float(tail_probability(threshold, items, margin, won, lost)[0])


def _score_items(margin: float, alpha: float, flip_rate: float, delta: float) -> float:
    """Return the normal approximation of `items_to_retain`."""
    distance = margin + delta
    # The score of the expected flips of one item is distance / sqrt(v0).
    expected = float(tango_score((flip_rate + delta) / 2, (flip_rate - delta) / 2, 1.0, margin))
    root = float(stats.norm.isf(alpha)) * distance / expected
    root += Z_POWER * math.sqrt(max(flip_rate - delta**2, 0.0))
    return (root / distance) ** 2


def _t_items(effect: float, deviation: float, alpha: float, alternative: Alternative) -> int:
    if deviation == 0:
        return 2
    normal = (_normal_distance(alpha, alternative) * deviation / effect) ** 2
    items = max(2, math.ceil(normal))
    while items < NORMAL_ITEMS and _t_power(items, effect / deviation, alpha, alternative) < POWER:
        items += 1
    return items


def _t_effect(items: int, deviation: float, alpha: float, alternative: Alternative) -> float | None:
    if items < 2:
        return None
    if deviation == 0:
        return 0.0
    if items >= NORMAL_ITEMS:
        return _normal_distance(alpha, alternative) * deviation / math.sqrt(items)
    return deviation * float(
        optimize.brentq(
            lambda effect: _t_power(items, effect, alpha, alternative) - POWER, 1e-9, 100.0
        )
    )


def _normal_distance(alpha: float, alternative: Alternative) -> float:
    """Return z_alpha + z_power, the effect in standard errors that a z test shows."""
    z = float(stats.norm.isf(alpha / 2 if alternative == "two-sided" else alpha))
    return z + Z_POWER


def _t_power(items: int, effect: float, alpha: float, alternative: Alternative) -> float:
    power = float(TTestPower().power(effect, items, alpha, alternative=alternative))
    # scipy's noncentral t is NaN for very large effects, where the power is 1.
    return 1.0 if math.isnan(power) else power
