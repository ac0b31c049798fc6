import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from lora_kit.statistics.clusters import (
    clustered_sample,
    observed_design_effect,
    robust_limits,
    robust_p,
    swap_arms,
    unbiased_skewness,
)


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def tens(count: int) -> list[str]:
    return [str(number // 10) for number in range(count)]


def test_the_robust_error_equals_statsmodels() -> None:
    generator = np.random.default_rng(1)
    clusters = generator.integers(20, size=150)
    differences = generator.normal(0, 1, 20)[clusters] + generator.normal(0, 1, 150)
    fit = sm.OLS(differences, np.ones(150)).fit(
        cov_type="cluster",
        cov_kwds={"groups": clusters, "use_correction": False},
    )
    result = clustered_sample(differences, clusters.astype(str).tolist())
    assert result.error == pytest.approx(float(fit.bse[0]) * math.sqrt(20 / 19))
    assert (result.items, result.clusters) == (150, 20)


@pytest.mark.parametrize("count", [3, 4, 200])
def test_the_skewness_equals_scipy(count: int) -> None:
    values = np.random.default_rng(count).exponential(1, count) - 7
    expected = float(stats.skew(values, bias=False))
    assert unbiased_skewness(values) == pytest.approx(expected, rel=1e-12)
    assert unbiased_skewness(1e-150 * values) == pytest.approx(expected, rel=1e-9)


def test_few_large_losses_lower_the_lower_limit_and_not_the_upper() -> None:
    losses = 1 - np.random.default_rng(2).exponential(1, 50)
    result = clustered_sample(losses, each(50))
    low, high = robust_limits(result, 0.9)
    plain = stats.ttest_1samp(losses, 0).confidence_interval(0.9)
    assert low < plain.low - 0.1 * result.error
    assert high == pytest.approx(plain.high)
    upside_down = robust_limits(swap_arms(result), 0.9)
    assert upside_down == pytest.approx((-high, -low))


@pytest.mark.parametrize("line", [-1.5, -0.6, 0.0, 0.4])
def test_p_and_limit_of_skewed_scores_agree(line: float) -> None:
    result = clustered_sample(1 - np.random.default_rng(3).exponential(1, 30), each(30))
    p = robust_p(result, line)
    if 1e-6 < p < 0.5:
        assert robust_limits(result, 1 - 2 * p)[0] == pytest.approx(line)
    assert (p <= 0.05) == (robust_limits(result, 0.9)[0] > line)


def test_without_a_flip_a_cluster_counts_as_one_item() -> None:
    assert observed_design_effect(clustered_sample(np.zeros(400), tens(400))) == pytest.approx(10)
    assert observed_design_effect(clustered_sample(np.zeros(40), each(40))) == 1


def test_the_observed_design_effect_gains_weight_with_flipped_clusters() -> None:
    """Flips independent of their cluster: the design effect falls from 10 towards 1."""
    generator = np.random.default_rng(4)
    effects = []
    for clusters in (4, 40, 400):
        flips = generator.choice([-1.0, 0.0, 1.0], clusters * 10, p=[0.05, 0.9, 0.05])
        effects.append(observed_design_effect(clustered_sample(flips, tens(clusters * 10))))
    assert effects[0] > effects[1] > effects[2]
    assert effects[2] < 1.5
    complete = np.repeat(generator.choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.9, 0.05]), 10)
    assert observed_design_effect(clustered_sample(complete, tens(4000))) == pytest.approx(
        10, rel=0.05
    )
