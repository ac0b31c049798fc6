import math

import numpy as np
import pytest
from scipy import stats

from lora_kit.statistics.decisions import (
    combine_decisions,
    holm,
    items_to_decide,
    loss_p,
    non_inferiority,
    paired_interval,
    superiority,
)


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def flips(won: int, lost: int, items: int) -> np.ndarray:
    return np.array([1.0] * won + [-1.0] * lost + [0.0] * (items - won - lost))


def test_the_interval_of_normal_differences_is_the_textbook_interval() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1.0, 400)
    result = paired_interval(differences, each(400), 0.95, binary=False)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(400)
    assert result.delta == pytest.approx(differences.mean())
    assert result.low == pytest.approx(differences.mean() - half, abs=0.01)
    assert result.high == pytest.approx(differences.mean() + half, abs=0.01)


def test_the_order_of_the_items_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    differences, clusters = generator.normal(0, 1, 60), np.repeat(np.arange(12), 5).astype(str)
    order = generator.permutation(60)
    first = paired_interval(differences, clusters.tolist(), 0.95, binary=False)
    second = paired_interval(differences[order], clusters[order].tolist(), 0.95, binary=False)
    assert (first.low, first.high) == pytest.approx((second.low, second.high))


def test_items_of_one_cluster_do_not_count_as_independent() -> None:
    generator = np.random.default_rng(2)
    clusters = np.repeat(np.arange(20), 20)
    differences = generator.normal(0, 1, 20)[clusters]
    alone = paired_interval(differences, each(400), 0.95, binary=False)
    clustered = paired_interval(differences, clusters.astype(str).tolist(), 0.95, binary=False)
    assert clustered.clusters == 20
    assert clustered.high - clustered.low > 3 * (alone.high - alone.low)


@pytest.mark.parametrize("binary", [True, False])
def test_a_single_cluster_is_inconclusive(binary: bool) -> None:
    result = superiority(np.ones(9), ["a"] * 9, 0.05, binary)
    assert (result.interval.low, result.interval.high) == (-math.inf, math.inf)
    assert (result.p, result.decision) == (1.0, "INCONCLUSIVE")
    retained = non_inferiority(np.ones(9), ["a"] * 9, 0.05, 0.05, binary)
    assert (retained.p, retained.decision) == (1.0, "INCONCLUSIVE")
    for margin in (None, 0.05):
        assert items_to_decide(np.ones(9), ["a"] * 9, 0.05, margin, binary) is None
    assert loss_p(-np.ones(9), ["a"] * 9, binary) == 1.0


def test_won_less_lost_is_the_difference() -> None:
    differences = np.random.default_rng(6).choice([-1.0, 0.0, 1.0], 150, p=[0.1, 0.8, 0.1])
    result = paired_interval(differences, each(150), 0.95, binary=True)
    won, lost = (differences > 0).sum(), (differences < 0).sum()
    assert won - lost == pytest.approx(result.delta * 150)


def test_few_items_without_flips_are_inconclusive() -> None:
    few = non_inferiority(flips(0, 0, 20), each(20), 0.05, 0.05, binary=True)
    assert few.decision == "INCONCLUSIVE"
    assert items_to_decide(flips(0, 0, 20), each(20), 0.05, 0.05, binary=True) == 59
    last = non_inferiority(flips(0, 0, 58), each(58), 0.05, 0.05, binary=True)
    assert last.decision == "INCONCLUSIVE"
    enough = non_inferiority(flips(0, 0, 59), each(59), 0.05, 0.05, binary=True)
    assert enough.decision == "PASS"
    assert enough.p == pytest.approx(0.95**59)


def test_few_clusters_without_flips_are_inconclusive() -> None:
    clusters = [str(number // 10) for number in range(400)]
    result = non_inferiority(flips(0, 0, 400), clusters, 0.05, 0.05, binary=True)
    assert result.decision == "INCONCLUSIVE"
    assert result.p == pytest.approx(0.95**40)
    assert items_to_decide(flips(0, 0, 400), clusters, 0.05, 0.05, binary=True) == 590


def test_equal_losses_are_retained_but_no_gain() -> None:
    retained = non_inferiority(np.zeros(10), each(10), 0.05, 0.05, binary=False)
    assert (retained.decision, retained.interval.low, retained.interval.high) == ("PASS", 0.0, 0.0)
    gained = superiority(np.zeros(10), each(10), 0.05, binary=False)
    assert (gained.decision, gained.p) == ("INCONCLUSIVE", 1.0)
    assert items_to_decide(np.zeros(10), each(10), 0.05, None, binary=False) is None
    assert loss_p(np.zeros(10), each(10), binary=False) == 1.0


def test_equal_differences_have_an_interval_of_zero_width() -> None:
    result = superiority(np.full(7, 0.1), each(7), 0.05, binary=False)
    assert (result.interval.low, result.interval.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert (result.decision, result.p) == ("PASS", 0.0)


@pytest.mark.parametrize(
    ("won", "lost", "gain", "retention"),
    [
        (30, 8, "PASS", "PASS"),
        (20, 18, "INCONCLUSIVE", "PASS"),
        (8, 16, "INCONCLUSIVE", "INCONCLUSIVE"),
        (0, 7, "FAIL", "PASS"),
        (2, 60, "FAIL", "FAIL"),
        (2, 20, "FAIL", "INCONCLUSIVE"),
    ],
)
def test_decisions_by_flips_among_300_items(won: int, lost: int, gain: str, retention: str) -> None:
    differences = flips(won, lost, 300)
    gained = superiority(differences, each(300), 0.05, binary=True)
    assert gained.decision == gain
    assert gained.p == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    retained = non_inferiority(differences, each(300), 0.05, 0.05, binary=True)
    assert retained.decision == retention
    assert (retained.p <= 0.05) == (retention == "PASS")


def test_a_limit_does_not_contradict_the_test() -> None:
    """5 wins of 5: Tango's limit clears 0, the exact test does not reject (p = 1/16)."""
    result = superiority(flips(5, 0, 40), each(40), 0.05, binary=True)
    assert (result.interval.low, result.decision) == (0.0, "INCONCLUSIVE")
    result = non_inferiority(flips(0, 0, 55), each(55), 0.05, 0.05, binary=True)
    assert (result.interval.low, result.decision) == (-0.05, "INCONCLUSIVE")


def test_the_method_is_named() -> None:
    generator = np.random.default_rng(1)
    pairs = [str(number // 2) for number in range(60)]
    alone, paired = (each(60), pairs)
    wins = flips(4, 4, 60)
    assert "McNemar" in superiority(wins, alone, 0.05, binary=True).method
    assert "exact" in non_inferiority(wins, alone, 0.05, 0.1, binary=True).method
    assert "effective items" in superiority(wins, paired, 0.05, binary=True).method
    assert superiority(generator.normal(0, 1, 60), paired, 0.05, binary=False).method == (
        "cluster bootstrap, no narrower than cluster-robust t corrected for skewness"
    )
    many = non_inferiority(np.zeros(6000), each(6000), 0.05, 0.05, binary=True)
    assert many.method == "score interval (Tango)"


@pytest.mark.parametrize("clusters", [3, 5, 18])
def test_few_clusters_do_not_raise_false_gains(clusters: int) -> None:
    generator = np.random.default_rng(5)
    names = each(clusters)
    gains = sum(
        superiority(generator.normal(0, 1, clusters), names, 0.05, False).decision == "PASS"
        for _ in range(200)
    )
    assert gains / 200 <= 0.05  # 2.5% nominal; the bootstrap alone had 14% at 3 clusters


def test_the_items_needed_would_have_decided() -> None:
    generator = np.random.default_rng(4)
    few = generator.normal(0.2, 1.0, 60)
    result = superiority(few, each(60), 0.05, binary=False)
    assert result.decision == "INCONCLUSIVE"
    needed = items_to_decide(few, each(60), 0.05, None, binary=False)
    assert needed is not None
    more = (needed, result.interval.delta, few.std(ddof=1))
    decided = sum(
        superiority(generator.normal(more[1], more[2], more[0]), each(more[0]), 0.05, False).p
        <= 0.05
        for _ in range(50)
    )
    assert 0.64 <= decided / 50 <= 0.96  # power 0.8, three times the error of 50 draws


def test_items_in_clusters_need_more_items() -> None:
    generator = np.random.default_rng(8)
    differences = np.repeat(generator.normal(0.2, 1.0, 30), 10) + generator.normal(0, 0.1, 300)
    clusters = [str(number // 10) for number in range(300)]
    alone = items_to_decide(differences, each(300), 0.001, None, binary=False)
    clustered = items_to_decide(differences, clusters, 0.001, None, binary=False)
    assert alone is not None
    assert clustered is not None
    assert clustered > 5 * alone


def test_no_number_of_items_decides_a_difference_at_the_threshold() -> None:
    on_the_line = flips(0, 2, 40)
    assert non_inferiority(on_the_line, each(40), 0.05, 0.05, True).decision == "INCONCLUSIVE"
    assert items_to_decide(on_the_line, each(40), 0.05, 0.05, True) is None


def test_loss_alarms_are_one_sided() -> None:
    assert loss_p(flips(0, 5, 40), each(40), binary=True) == pytest.approx(1 / 32)
    assert loss_p(flips(5, 0, 40), each(40), binary=True) == 1.0
    assert loss_p(flips(0, 0, 40), each(40), binary=True) == 1.0
    generator = np.random.default_rng(3)
    differences = generator.normal(-0.3, 1, 50)
    expected = stats.ttest_1samp(differences, 0, alternative="less").pvalue
    assert loss_p(differences, each(50), binary=False) == pytest.approx(expected, rel=0.2)
    assert loss_p(differences, each(50), binary=False) >= expected


def test_holm_adjusts_as_published() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()


@pytest.mark.parametrize("number", [1, 2, 7, 40])
def test_holm_equals_statsmodels_bit_for_bit(number: int) -> None:
    from statsmodels.stats.multitest import multipletests

    random = np.random.default_rng(number)
    for p_values in (random.random(number) ** 3, random.choice([0, 0.01, 0.2, 1.0], number)):
        expected = multipletests(p_values, method="holm")[1]
        assert holm(p_values.tolist()) == tuple(expected.tolist())


def test_all_decisions_must_pass() -> None:
    assert combine_decisions(["PASS", "PASS"]) == "PASS"
    assert combine_decisions(["PASS", "INCONCLUSIVE"]) == "INCONCLUSIVE"
    assert combine_decisions(["INCONCLUSIVE", "FAIL"]) == "FAIL"
    assert combine_decisions([]) == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("differences", "clusters", "binary", "part"),
    [
        ([], [], False, "no items"),
        ([0.1, 0.2], ["a"], False, r"name for each of 2 differences \(got 1\)"),
        ([0.1, math.nan], ["a", "b"], False, "not a finite number"),
        ([0.5, 1.0], ["a", "b"], True, "is not -1, 0 or 1"),
    ],
)
def test_invalid_differences_are_refused(
    differences: list[float], clusters: list[str], binary: bool, part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        paired_interval(np.array(differences), clusters, 0.95, binary)
    with pytest.raises(ValueError, match=part):
        loss_p(np.array(differences), clusters, binary)


def test_a_margin_is_above_zero() -> None:
    with pytest.raises(ValueError, match="not above 0"):
        non_inferiority(np.zeros(5), each(5), 0.05, 0.0, binary=True)
