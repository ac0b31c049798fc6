import math

import numpy as np
import pytest

from lora_kit.evaluation.statistics import (
    Interval,
    combined,
    items_needed,
    non_inferiority,
    paired_interval,
    superiority,
)


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def interval(delta: float, low: float, high: float) -> Interval:
    return Interval(delta, low, high, 0.9, 100, 100)


def test_the_interval_of_normal_differences_is_the_textbooks() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1.0, 400)
    found = paired_interval(differences, each(400), 0.95, binary=False)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(400)
    assert found.delta == pytest.approx(differences.mean())
    assert found.low == pytest.approx(differences.mean() - half, abs=0.01)
    assert found.high == pytest.approx(differences.mean() + half, abs=0.01)


def test_items_of_one_cluster_do_not_count_as_independent() -> None:
    generator = np.random.default_rng(2)
    clusters = np.repeat(np.arange(20), 20)
    differences = generator.normal(0, 1, 20)[clusters]
    alone = paired_interval(differences, each(400), 0.95, binary=False)
    clustered = paired_interval(differences, clusters.astype(str).tolist(), 0.95, binary=False)
    assert clustered.clusters == 20
    assert clustered.high - clustered.low > 3 * (alone.high - alone.low)


def test_one_cluster_says_nothing_of_others() -> None:
    found = paired_interval(np.array([0.1, 0.2]), ["a", "a"], 0.95, binary=False)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_no_flip_among_few_items_is_no_proof_of_safety() -> None:
    few = paired_interval(np.zeros(20), each(20), 0.9, binary=True)
    many = paired_interval(np.zeros(400), each(400), 0.9, binary=True)
    assert non_inferiority(few, margin=0.05) == "INCONCLUSIVE"
    assert non_inferiority(many, margin=0.05) == "PASS"


def test_the_binary_interval_covers_what_it_says() -> None:
    """One-sided at 95%: the truth lies below the lower limit in at most about one run of twenty."""
    generator = np.random.default_rng(3)
    missed = 0
    for _ in range(200):
        flips = generator.choice([-1.0, 0.0, 1.0], size=150, p=[0.08, 0.87, 0.05])
        missed += paired_interval(flips, each(150), 0.9, binary=True).low > -0.03
    assert missed / 200 <= 0.08


@pytest.mark.parametrize("clusters", [3, 5, 18])
def test_few_clusters_do_not_make_a_gain_of_nothing(clusters: int) -> None:
    generator = np.random.default_rng(5)
    names = each(clusters)
    gains = sum(
        superiority(paired_interval(generator.normal(0, 1, clusters), names, 0.95, False)) == "PASS"
        for _ in range(200)
    )
    assert gains / 200 <= 0.05  # 2.5% nominal; the bootstrap alone had 14% at 3 clusters


@pytest.mark.parametrize(
    ("low", "high", "gain", "retention"),
    [
        (0.01, 0.1, "PASS", "PASS"),
        (-0.02, 0.1, "INCONCLUSIVE", "PASS"),
        (-0.08, 0.1, "INCONCLUSIVE", "INCONCLUSIVE"),
        (-0.04, -0.01, "FAIL", "PASS"),
        (-0.2, -0.06, "FAIL", "FAIL"),
        (-0.2, -0.01, "FAIL", "INCONCLUSIVE"),
        (-math.inf, math.inf, "INCONCLUSIVE", "INCONCLUSIVE"),
    ],
)
def test_what_an_interval_decides(low: float, high: float, gain: str, retention: str) -> None:
    found = interval((low + high) / 2 if math.isfinite(low) else 0.0, low, high)
    assert superiority(found) == gain
    assert non_inferiority(found, margin=0.05) == retention


def test_the_items_needed_would_have_decided() -> None:
    generator = np.random.default_rng(4)
    few = generator.normal(0.1, 1.0, 100)
    found = paired_interval(few, each(100), 0.95, binary=False)
    assert superiority(found) == "INCONCLUSIVE"
    needed = items_needed(found, float(few.std(ddof=1)), margin=0.0)
    assert needed is not None
    decided = sum(
        superiority(
            paired_interval(
                generator.normal(found.delta, few.std(ddof=1), needed), each(needed), 0.95, False
            )
        )
        == "PASS"
        for _ in range(20)
    )
    assert decided >= 12  # power 0.8, of 20


def test_no_number_of_items_decides_a_difference_on_the_line() -> None:
    assert items_needed(interval(-0.05, -0.1, 0.0), 0.3, margin=0.05) is None
    assert items_needed(interval(0.0, -math.inf, math.inf), 0.3, margin=0.05) is None


def test_all_have_to_pass() -> None:
    assert combined(["PASS", "PASS"]) == "PASS"
    assert combined(["PASS", "INCONCLUSIVE"]) == "INCONCLUSIVE"
    assert combined(["INCONCLUSIVE", "FAIL"]) == "FAIL"
    assert combined([]) == "INCONCLUSIVE"


def test_no_items_is_an_error_not_a_score() -> None:
    with pytest.raises(ValueError, match="no items"):
        paired_interval(np.array([]), [], 0.95, binary=False)
