"""Intervals over seeds and items together."""

import math

import numpy as np
import pytest

from lora_kit.statistics.clusters import clustered_sample, robust_limits
from lora_kit.statistics.decisions import non_inferiority, superiority
from lora_kit.statistics.seeds import compare_seeds


def names(count: int, each: int = 1) -> list[str]:
    return [str(n // each) for n in range(count)]


def test_seeds_that_agree_leave_the_interval_of_the_items() -> None:
    items = np.random.default_rng(0).normal(0.2, 1, 200)
    found = compare_seeds(np.stack([items, items, items]), names(200), 0.05, None, False)
    alone = robust_limits(clustered_sample(items, names(200)), 0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(alone)
    assert found.deviation == 0.0
    assert found.by_seed == pytest.approx((items.mean(),) * 3)


def test_seeds_that_disagree_widen_it_by_their_own_few_degrees_of_freedom() -> None:
    items = np.random.default_rng(0).normal(0, 0.01, 400)
    found = compare_seeds(
        np.stack([items + 0.1, items + 0.2, items + 0.3]), names(400), 0.05, None, False
    )
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
        found = compare_seeds(values, names(80), 0.05, margin, False)
        decisions.add(found.decision)
        passes = found.p <= 0.05 and (margin is not None or found.interval.delta > 0)
        assert (found.decision == "PASS") == passes
    assert decisions == {"PASS", "FAIL", "INCONCLUSIVE"}


def test_without_a_spread_nothing_is_decided() -> None:
    found = compare_seeds(np.full((2, 10), 0.5), names(10), 0.05, None, False)
    assert found.decision == "INCONCLUSIVE"
    assert found.p == 1.0
    # The losses of an adapter that changes nothing are known without a doubt.
    alike = compare_seeds(np.zeros((2, 10)), names(10), 0.05, 0.1, False)
    assert alike.decision == "PASS"
    with pytest.raises(ValueError, match="two seeds at least"):
        compare_seeds(np.zeros((1, 10)), names(10), 0.05, None, False)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (0, 1), (4, 0), (2, 6), (12, 1)])
@pytest.mark.parametrize("margin", [None, 0.05, 0.1])
@pytest.mark.parametrize("items", [20, 90])
def test_seeds_with_the_same_answers_are_one_adapter(
    won: int, lost: int, margin: float | None, items: int
) -> None:
    """Also without flips: too few items pass as little as they do for a single adapter."""
    answers = np.zeros(items)
    answers[:won], answers[won : won + lost] = 1, -1
    found = compare_seeds(np.stack([answers] * 3), names(items), 0.05, margin, True)
    if margin is None:
        single = superiority(answers, names(items), 0.05, True)
    else:
        single = non_inferiority(answers, names(items), 0.05, margin, True)
    assert found.decision == single.decision
    assert found.interval.low == pytest.approx(single.interval.low, abs=1e-6)
    assert found.interval.high == pytest.approx(single.interval.high, abs=1e-6)
    assert min(found.p, 0.5) == pytest.approx(min(single.p, 0.5), rel=1e-3)


def test_seeds_that_flip_unlike_items_say_more_than_one_and_less_than_apart() -> None:
    flips = np.zeros((3, 60))
    for seed in range(3):
        flips[seed, 8 * seed : 8 * seed + 4] = 1
        flips[seed, 8 * seed + 4 : 8 * seed + 8] = -1
    found = compare_seeds(flips, names(60), 0.05, 0.1, True).interval
    single = non_inferiority(flips[0], names(60), 0.05, 0.1, True).interval
    apart = non_inferiority(flips.ravel(), names(180), 0.05, 0.1, True).interval
    widths = [one.high - one.low for one in (apart, found, single)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3


def test_right_and_wrong_scores_in_clusters_are_no_narrower_than_their_clusters() -> None:
    answers = np.repeat(np.random.default_rng(3).choice([-1.0, 0.0, 0.0, 1.0], 12), 5)
    found = compare_seeds(np.stack([answers] * 2), names(60, 5), 0.05, None, True)
    apart = compare_seeds(np.stack([answers] * 2), names(60), 0.05, None, True)
    assert found.interval.high - found.interval.low > apart.interval.high - apart.interval.low
    with pytest.raises(ValueError, match="not -1, 0 or 1"):
        compare_seeds(np.full((2, 10), 0.5), names(10), 0.05, None, True)


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
        found = compare_seeds(values, names(100, 2), 0.05, None, False)
        held += found.interval.low <= 0 <= found.interval.high
        items = clustered_sample(values.mean(axis=0), names(100, 2))
        of_items_alone += abs(items.delta) <= 2.01 * items.error
    assert held / runs >= 0.93
    if between:
        assert of_items_alone / runs < 0.9
