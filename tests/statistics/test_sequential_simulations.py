"""Simulations of sequential tests: their errors, their power, and the intervals that are shown.

A loss of exactly the margin passes at most at the level; an adapter that loses nothing passes as
often as by the fixed test, less 3 points; the repeated intervals cover. Rates may miss these by
three standard errors. `tests.benchmarks.stopping` draws more of all.
"""

import math

import pytest

from lora_kit.statistics.looks import Looks
from tests.statistics.sequential import (
    ALPHA,
    NOISES,
    SHAPE,
    flips,
    passed_margin,
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


@pytest.mark.parametrize("looks", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NOISES)
def test_other_scores(name: str, looks: int) -> None:
    draws, (noise, cluster_size) = DRAWS // 2, NOISES[name]
    items = 200 if cluster_size == 1 else 800
    margin = passed_margin(items, cluster_size)
    at_margin = simulate(
        shifted(noise, margin), -margin, margin, items, looks, draws, cluster_size=cluster_size
    )
    unchanged = simulate(noise, 0, margin, items, looks, draws, cluster_size=cluster_size)
    check(at_margin.passed, unchanged.passed, unchanged.fixed, draws)
    for one in (at_margin, unchanged):
        assert one.covered >= 1 - 2 * ALPHA - error(2 * ALPHA, draws)


@pytest.mark.parametrize(
    ("items", "name"),
    [
        *((25, name) for name in ("normal", "few great losses", "heavy tails")),
        pytest.param(60, "heavy tails", marks=pytest.mark.slow),
        pytest.param(60, "normal", marks=pytest.mark.slow),
        pytest.param(60, "few great losses", marks=pytest.mark.slow),
    ],
)
def test_graded_scores_of_few_clusters(name: str, items: int) -> None:
    """The fixed test itself lets skewed scores of few clusters pass too often; looks add little."""
    draws, (noise, _) = 2 * DRAWS, NOISES[name]
    margin = passed_margin(items, 1)
    at_margin = simulate(shifted(noise, margin), -margin, margin, items, 5, draws)
    unchanged = simulate(noise, 0, margin, items, 5, draws)
    assert len(Looks.plan(items, 5, ALPHA, SHAPE, graded=True)) > 1
    # The draws are the same: 0.7 points are 4 of 600.
    assert at_margin.passed <= at_margin.fixed + 0.007
    assert unchanged.passed >= unchanged.fixed - POWER_LOSS
    for one in (at_margin, unchanged):
        assert one.covered >= 1 - 2 * ALPHA - error(2 * ALPHA, draws) - 0.01


def check(false_passes: float, passes: float, fixed: float, draws: int) -> None:
    assert false_passes <= ALPHA + error(ALPHA, draws)
    # The draws are the same, so that only those differ that the looks decide otherwise.
    assert passes >= fixed - POWER_LOSS - error(POWER_LOSS, draws)
