import math

import numpy as np
import pytest
from scipy import stats

from lora_kit.statistics.bootstrap import Statistic, bootstrap_statistic, percentile_limits
from lora_kit.statistics.clusters import Floats
from lora_kit.statistics.decisions import paired_interval
from lora_kit.statistics.resampled import compare_statistics


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_the_bootstrap_of_a_mean_has_the_limits_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 300)
    low, high = bootstrap_statistic(
        lambda weights: weights @ values / weights.sum(axis=1), each(300), 0.95
    )
    result = paired_interval(values, each(300), 0.95, binary=False)
    assert (low, high) == pytest.approx((result.low, result.high), abs=0.01)
    assert bootstrap_statistic(lambda w: w.sum(axis=1), ["a"] * 3, 0.95) == (-math.inf, math.inf)


def test_nothing_is_known_of_a_statistic_without_values() -> None:
    unknown = -math.inf, math.inf
    assert (
        bootstrap_statistic(lambda weights: np.full(len(weights), math.nan), each(5), 0.95)
        == unknown
    )

    def of_first(least: int) -> Statistic:
        """Return a mean that is undefined where the first item is drawn less often."""
        return lambda w: np.where(w[:, 0] >= least, w.mean(axis=1) + w[:, 1], math.nan)

    # Drawn in 63% of the resamples, and in all of them.
    assert bootstrap_statistic(of_first(1), each(50), 0.95) == unknown
    low, high = bootstrap_statistic(of_first(0), each(50), 0.95)
    assert 0 <= low < high < 10


def test_a_statistic_that_is_hardly_defined_decides_nothing() -> None:
    """F1 of a type that one item of fifty has."""
    truth = np.array([1.0] + [0.0] * 49)

    def f1(found: Floats) -> Statistic:
        def statistic(weights: Floats) -> Floats:
            hits, made = weights @ (truth * found), weights @ (truth + found)
            with np.errstate(invalid="ignore"):
                return np.asarray(2 * hits / made)

        return statistic

    result = compare_statistics(f1(np.zeros(50)), f1(truth), each(50), 0.05, None)
    assert result.interval.delta == 1
    assert (result.interval.low, result.interval.high) == (-math.inf, math.inf)
    assert (result.decision, result.p) == ("INCONCLUSIVE", 1.0)


def test_many_clusters_are_resampled_in_batches() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 3000)
    result = paired_interval(values, each(3000), 0.95, binary=False)
    half = 1.96 * values.std(ddof=1) / math.sqrt(3000)
    assert result.high - result.low == pytest.approx(2 * half, rel=0.05)


def test_limits_of_few_clusters_are_widened() -> None:
    values = np.random.default_rng(5).normal(0, 1, 2000)
    few, many = (percentile_limits(values, 0.0, count, 0.95) for count in (5, 5000))
    assert many == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), rel=0.01)
    wider = stats.t.ppf(0.975, 4) / stats.norm.ppf(0.975) * math.sqrt(5 / 4)
    assert few[1] == pytest.approx(many[1] * wider, rel=0.01)
