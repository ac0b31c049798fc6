"""Simulations of the error rates of decisions and of the power of planned numbers of items.

Simulated rates may exceed the nominal ones by three standard errors; exact rates may not.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest

from lora_kit.statistics.decisions import (
    PairedComparison,
    non_inferiority,
    paired_interval,
    superiority,
)
from lora_kit.statistics.power import Deviation, FlipRate, items_to_retain, items_to_show_gain
from lora_kit.statistics.proportions import (
    critical_score,
    mcnemar_p,
    tail_probability,
    tango_score,
)

ALPHA = 0.05
Draw = Callable[[np.random.Generator, int], np.ndarray]


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def at_most(rate: float, draws: int) -> float:
    return rate + 3 * math.sqrt(rate * (1 - rate) / draws)


def normal(generator: np.random.Generator, items: int) -> np.ndarray:
    return generator.normal(0, 1, items)


def few_great_losses(generator: np.random.Generator, items: int) -> np.ndarray:
    return 1 - generator.exponential(1, items)


def few_great_gains(generator: np.random.Generator, items: int) -> np.ndarray:
    return generator.exponential(1, items) - 1


def passing(draws: int, compare: Callable[[], PairedComparison]) -> float:
    return sum(compare().decision == "PASS" for _ in range(draws)) / draws


@pytest.mark.parametrize("items", [40, 59, 100, 200, 400])
def test_flips_that_lose_the_margin_pass_at_most_at_the_level(items: int) -> None:
    """Exact rates, at flip rates from losses only (0) to a difference on every item."""
    for margin in (0.02, 0.05, 0.1):
        rates = margin + (1 - margin) * np.linspace(0, 1, 997) ** 2
        passed = tail_probability(
            critical_score(items, margin, ALPHA),
            items,
            margin,
            (rates - margin) / 2,
            (rates + margin) / 2,
        )
        assert passed.max() <= ALPHA + 0.0003  # what lies between the points of its own grid


@pytest.mark.parametrize("flip_rate", [0.05, 0.1, 0.3])
def test_flips_of_a_thousand_items_pass_at_most_at_the_level(flip_rate: float) -> None:
    shares = [(flip_rate - 0.05) / 2, (flip_rate + 0.05) / 2, 1 - flip_rate]
    drawn = np.random.default_rng(1).multinomial(1000, shares, size=20_000)
    passed = tango_score(drawn[:, 0], drawn[:, 1], 1000, 0.05) >= critical_score(1000, 0.05, ALPHA)
    assert passed.mean() <= at_most(ALPHA, 20_000)


def test_with_losses_only_the_rate_is_binomial() -> None:
    """Zero-width limits without flips passed from 31 items on: 0.95^31 = 20% of losses pass."""
    threshold = critical_score(31, 0.05, ALPHA)
    assert float(tango_score(0, 0, 31, 0.05)) < threshold
    assert 0.95**31 > 0.2
    decisions = {
        items: non_inferiority(np.zeros(items), each(items), ALPHA, 0.05, binary=True).decision
        for items in (31, 58, 59)
    }
    assert decisions == {31: "INCONCLUSIVE", 58: "INCONCLUSIVE", 59: "PASS"}


@pytest.mark.parametrize(
    ("draw", "items", "draws", "limit"),
    [
        (normal, 50, 600, ALPHA),
        (few_great_gains, 50, 600, ALPHA),
        # Of 50 exponential losses, 6.5% (of 3,000 draws); plain t lets 9% pass.
        (few_great_losses, 50, 600, 0.065),
        (normal, 200, 300, ALPHA),
        (few_great_gains, 200, 300, ALPHA),
        (few_great_losses, 200, 300, ALPHA),
    ],
)
def test_scores_that_lose_the_margin_pass_at_most_at_the_level(
    draw: Draw, items: int, draws: int, limit: float
) -> None:
    generator, names = np.random.default_rng(items), each(items)
    rate = passing(
        draws,
        lambda: non_inferiority(draw(generator, items) - 0.5, names, ALPHA, 0.5, binary=False),
    )
    assert rate <= at_most(limit, draws)


def clustered(
    generator: np.random.Generator, won: float, lost: float, icc: float = 0.5
) -> np.ndarray:
    """Draw 40 clusters of 10 flips, correlated: an item has its cluster's draw or its own."""
    shares, values = [won, lost, 1 - won - lost], np.array([1.0, -1.0, 0.0])
    common = generator.choice(3, size=(40, 1), p=shares)
    own = generator.choice(3, size=(40, 10), p=shares)
    is_common = generator.random((40, 10)) < math.sqrt(icc)
    return values[np.where(is_common, common, own)].ravel()


TENS = [str(number // 10) for number in range(400)]


def test_clusters_do_not_raise_false_gains_unless_ignored() -> None:
    generator, draws = np.random.default_rng(10), 500
    named = hidden = 0
    for _ in range(draws):
        differences = clustered(generator, 0.15, 0.15)
        result = paired_interval(differences, TENS, 1 - ALPHA, binary=True)
        named += result.low > 0 or result.high < 0
        hidden += mcnemar_p(int((differences > 0).sum()), int((differences < 0).sum())) <= ALPHA
    assert named / draws <= 0.06
    assert hidden / draws > 0.1


@pytest.mark.parametrize(("won", "lost"), [(0.0, 0.05), (0.1, 0.15)])
def test_clusters_that_lose_the_margin_do_not_pass_unless_ignored(won: float, lost: float) -> None:
    """By the limit, which must clear the margin to pass; 4.9% and 4.1% of 4,000 draws."""
    generator, draws = np.random.default_rng(12), 600
    threshold = critical_score(400, 0.05, ALPHA)
    named = hidden = 0
    for _ in range(draws):
        differences = clustered(generator, won, lost)
        named += paired_interval(differences, TENS, 1 - 2 * ALPHA, binary=True).low > -0.05
        wins, losses = (differences > 0).sum(), (differences < 0).sum()
        hidden += float(tango_score(wins, losses, 400, 0.05)) >= threshold
    assert named / draws <= 0.06
    assert hidden / draws > 0.1


def test_continuous_scores_in_clusters_pass_at_most_at_the_level() -> None:
    generator, draws = np.random.default_rng(13), 400

    def differences() -> np.ndarray:
        return np.repeat(generator.normal(0, 1, 40), 10) + generator.normal(0, 1, 400)

    drawn = [differences() for _ in range(draws)]
    alarms = [superiority(one, TENS, ALPHA, binary=False).p <= ALPHA for one in drawn]
    assert np.mean(alarms) <= at_most(ALPHA, draws)
    passes = [
        non_inferiority(one - 0.3, TENS, ALPHA, 0.3, binary=False).p <= ALPHA for one in drawn
    ]
    assert np.mean(passes) <= at_most(ALPHA, draws)
    hidden = [abs(one.mean()) > 1.96 * one.std(ddof=1) / 20 for one in drawn]
    assert np.mean(hidden) > 0.1


@pytest.mark.parametrize(
    ("margin", "flip_rate"), [(0.05, 0.0), (0.05, 0.02), (0.1, 0.1), (0.05, 0.1), (0.03, 0.1)]
)
def test_planned_items_have_the_power_for_retention_of_flips(
    margin: float, flip_rate: float
) -> None:
    """The plan is within 10% of a power of 0.8 (20,000 draws, error 0.3 points)."""
    planned = items_to_retain(margin, ALPHA, FlipRate(flip_rate))
    generator = np.random.default_rng(21)

    def power(items: int) -> float:
        shares = [flip_rate / 2, flip_rate / 2, 1 - flip_rate]
        drawn = generator.multinomial(items, shares, size=20_000)
        threshold = critical_score(items, margin, ALPHA)
        return float((tango_score(drawn[:, 0], drawn[:, 1], items, margin) >= threshold).mean())

    assert power(planned) >= 0.79
    assert power(math.floor(planned * 0.9)) < 0.8 <= power(math.ceil(planned * 1.1))


@pytest.mark.parametrize(
    ("effect", "flip_rate"), [(0.05, 0.15), (0.2, 0.3), (0.1, 0.2), (0.1, 0.1)]
)
def test_planned_items_have_the_power_for_a_gain_of_flips(effect: float, flip_rate: float) -> None:
    planned = items_to_show_gain(effect, ALPHA, FlipRate(flip_rate))
    generator = np.random.default_rng(22)

    def power(items: int) -> float:
        shares = [(flip_rate + effect) / 2, (flip_rate - effect) / 2, 1 - flip_rate]
        drawn = generator.multinomial(items, shares, size=4_000)[:, :2]
        outcomes, counts = np.unique(drawn, axis=0, return_counts=True)
        passed = [won > lost and mcnemar_p(won, lost) <= ALPHA for won, lost in outcomes]
        return float(counts[passed].sum() / counts.sum())

    assert power(planned) >= 0.78
    assert power(math.floor(planned * 0.9)) < 0.8 <= power(math.ceil(planned * 1.1))


@pytest.mark.parametrize(
    ("draw", "margin"),
    [(normal, 0.4), (normal, 0.25)],
)
def test_planned_items_have_the_power_for_retention_of_scores(draw: Draw, margin: float) -> None:
    planned = items_to_retain(margin, ALPHA, Deviation(1.0))
    generator = np.random.default_rng(23)

    def power(items: int) -> float:
        names = each(items)
        return passing(
            500, lambda: non_inferiority(draw(generator, items), names, ALPHA, margin, False)
        )

    assert power(math.floor(planned * 0.9)) < 0.8 <= power(math.ceil(planned * 1.1))


@pytest.mark.parametrize("effect", [0.4, 0.3])
def test_planned_items_have_the_power_for_a_gain_of_scores(effect: float) -> None:
    planned = items_to_show_gain(effect, ALPHA, Deviation(1.0))
    generator = np.random.default_rng(24)

    def power(items: int) -> float:
        names = each(items)
        return passing(
            500, lambda: superiority(generator.normal(effect, 1, items), names, ALPHA, False)
        )

    assert power(math.floor(planned * 0.9)) < 0.8 <= power(math.ceil(planned * 1.1))
