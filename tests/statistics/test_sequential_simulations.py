"""Simulations of sequential tests: their errors, their power, and the intervals that are shown.

A loss of exactly the margin passes at most at the level; an adapter that loses nothing passes as
often as by the fixed test, less 3 points; the repeated intervals cover. Rates may miss these by
three standard errors. `tests.benchmarks.stopping` draws more of all.
"""

import math

import pytest

from tests.statistics.sequential import (
    ALPHA,
    Draw,
    clustered,
    few_great_losses,
    flips,
    heavy_tails,
    normal,
    shifted,
    simulate,
)

DRAWS = 300
# Largest loss of power that the looks may cost.
POWER_LOSS = 0.03


def error(rate: float, draws: int) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize(
    ("items", "looks", "rate", "margin"),
    [
        (60, 10, 0.1, 0.08),
        (100, 3, 0.02, 0.05),
        (160, 5, 0.1, 0.08),
        pytest.param(180, 5, 0.3, 0.1, marks=pytest.mark.slow),
        pytest.param(400, 10, 0.05, 0.05, marks=pytest.mark.slow),
    ],
)
def test_flips(items: int, looks: int, rate: float, margin: float) -> None:
    at_margin = simulate(
        flips(max(rate, margin), margin), -margin, margin, items, looks, DRAWS, binary=True
    )
    unchanged = simulate(flips(rate, 0), 0, margin, items, looks, DRAWS, binary=True)
    check(at_margin.passed, unchanged.passed, unchanged.fixed, DRAWS)
    for one in (at_margin, unchanged):
        # Right/wrong scores have few values: Tango's interval misses its level by up to a point.
        assert one.covered >= 1 - 2 * ALPHA - error(2 * ALPHA, DRAWS) - 0.01


@pytest.mark.parametrize("looks", [3, 5])
@pytest.mark.parametrize(
    ("noise", "items", "cluster_size"),
    [(normal, 200, 1), (few_great_losses, 200, 1), (heavy_tails, 200, 1), (clustered, 800, 10)],
)
def test_other_scores(noise: Draw, items: int, cluster_size: int, looks: int) -> None:
    draws = DRAWS // 2
    # Twice the deviation of the mean and a half: what an adapter without a loss mostly passes.
    design = 1 + (cluster_size - 1) * 0.5
    margin = 2.5 * math.sqrt(design / items)
    at_margin = simulate(
        shifted(noise, margin), -margin, margin, items, looks, draws, cluster_size=cluster_size
    )
    unchanged = simulate(noise, 0, margin, items, looks, draws, cluster_size=cluster_size)
    check(at_margin.passed, unchanged.passed, unchanged.fixed, draws)
    for one in (at_margin, unchanged):
        assert one.covered >= 1 - 2 * ALPHA - error(2 * ALPHA, draws)


def check(false_passes: float, passes: float, fixed: float, draws: int) -> None:
    assert false_passes <= ALPHA + error(ALPHA, draws)
    # The draws are the same, so that only those differ that the looks decide otherwise.
    assert passes >= fixed - POWER_LOSS - error(POWER_LOSS, draws)
