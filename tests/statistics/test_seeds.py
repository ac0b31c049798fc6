"""Intervals over seeds and items together."""

import math

import numpy as np
import pytest

from lora_kit.statistics.clusters import clustered_sample
from lora_kit.statistics.seeds import compare_seeds


def names(count: int, each: int = 1) -> list[str]:
    return [str(n // each) for n in range(count)]


def test_seeds_that_agree_leave_the_interval_of_the_items() -> None:
    items = np.random.default_rng(0).normal(0.2, 1, 200)
    found = compare_seeds(np.stack([items, items, items]), names(200), 0.05, None)
    error = clustered_sample(items, names(200)).error
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.972 * error, rel=1e-3)
    assert found.deviation == 0.0
    assert found.by_seed == pytest.approx((items.mean(),) * 3)


def test_seeds_that_disagree_widen_it_by_their_own_few_degrees_of_freedom() -> None:
    items = np.random.default_rng(0).normal(0, 0.01, 400)
    found = compare_seeds(np.stack([items + 0.1, items + 0.2, items + 0.3]), names(400), 0.05, None)
    # Three values of deviation 0.1: t with 2 degrees of freedom is 4.303.
    assert found.interval.delta == pytest.approx(0.2, abs=2e-3)
    assert found.interval.high - 0.2 == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=0.02)
    assert found.deviation == pytest.approx(0.1, rel=0.01)
    assert found.decision == "INCONCLUSIVE"


@pytest.mark.parametrize("margin", [None, 0.3])
def test_interval_and_test_decide_alike(margin: float | None) -> None:
    random, decisions = np.random.default_rng(1), set()
    for shift in np.linspace(-1.2, 0.8, 30):
        values = random.normal(shift, 1, (3, 80)) + random.normal(0, 0.05, (3, 1))
        found = compare_seeds(values, names(80), 0.05, margin)
        decisions.add(found.decision)
        passes = found.p <= 0.05 and (margin is not None or found.interval.delta > 0)
        assert (found.decision == "PASS") == passes
    assert decisions == {"PASS", "FAIL", "INCONCLUSIVE"}


def test_without_a_spread_nothing_is_decided() -> None:
    found = compare_seeds(np.full((2, 10), 0.5), names(10), 0.05, None)
    assert found.decision == "INCONCLUSIVE"
    assert found.p == 1.0
    alike = compare_seeds(np.zeros((2, 10)), names(10), 0.05, 0.1)
    assert alike.decision == "PASS"
    with pytest.raises(ValueError, match="two seeds at least"):
        compare_seeds(np.zeros((1, 10)), names(10), 0.05, None)


@pytest.mark.parametrize(("seeds", "between"), [(3, 0.0), (3, 1.0), (2, 0.3)])
def test_intervals_hold_for_other_seeds_and_other_items(seeds: int, between: float) -> None:
    random, runs = np.random.default_rng(2), 300
    held = of_items_alone = 0
    for _ in range(runs):
        values = (
            random.normal(0, between, (seeds, 1))
            + np.repeat(random.normal(0, 1, (1, 50)), 2, axis=1)
            + random.normal(0, 1, (seeds, 100))
        )
        found = compare_seeds(values, names(100, 2), 0.05, None)
        held += found.interval.low <= 0 <= found.interval.high
        items = clustered_sample(values.mean(axis=0), names(100, 2))
        of_items_alone += abs(items.delta) <= 2.01 * items.error
    assert held / runs >= 0.93
    if between:
        assert of_items_alone / runs < 0.9
