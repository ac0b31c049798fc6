import math

import numpy as np
import pytest
from scipy import stats

from lora_kit.statistics.bootstrap import bootstrap_statistic, percentile_limits
from lora_kit.statistics.decisions import paired_interval


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


def test_a_statistic_without_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="no value for too many resamples"):
        bootstrap_statistic(lambda weights: np.full(len(weights), math.nan), each(5), 0.95)


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
