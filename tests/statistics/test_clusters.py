import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from lora_kit.statistics.clusters import (
    design_effect_seen,
    mirrored,
    percentile_limits,
    robust_limits,
    robust_p,
    sample,
)


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def tens(count: int) -> list[str]:
    return [str(number // 10) for number in range(count)]


def test_the_robust_error_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(1)
    clusters = generator.integers(20, size=150)
    differences = generator.normal(0, 1, 20)[clusters] + generator.normal(0, 1, 150)
    fit = sm.OLS(differences, np.ones(150)).fit(
        cov_type="cluster",
        cov_kwds={"groups": clusters, "use_correction": False},
    )
    found = sample(differences, clusters.astype(str).tolist())
    assert found.error == pytest.approx(float(fit.bse[0]) * math.sqrt(20 / 19))
    assert (found.items, found.clusters) == (150, 20)


def test_few_great_losses_lower_the_lower_limit_and_not_the_upper() -> None:
    losses = 1 - np.random.default_rng(2).exponential(1, 50)
    found = sample(losses, each(50))
    low, high = robust_limits(found, 0.9)
    plain = stats.ttest_1samp(losses, 0).confidence_interval(0.9)
    assert low < plain.low - 0.1 * found.error
    assert high == pytest.approx(plain.high)
    upside_down = robust_limits(mirrored(found), 0.9)
    assert upside_down == pytest.approx((-high, -low))


@pytest.mark.parametrize("line", [-1.5, -0.6, 0.0, 0.4])
def test_p_and_limit_of_skewed_scores_agree(line: float) -> None:
    found = sample(1 - np.random.default_rng(3).exponential(1, 30), each(30))
    p = robust_p(found, line)
    if 1e-6 < p < 0.5:
        assert robust_limits(found, 1 - 2 * p)[0] == pytest.approx(line)
    assert (p <= 0.05) == (robust_limits(found, 0.9)[0] > line)


def test_without_a_flip_a_cluster_counts_as_one_item() -> None:
    assert design_effect_seen(sample(np.zeros(400), tens(400))) == pytest.approx(10)
    assert design_effect_seen(sample(np.zeros(40), each(40))) == 1


def test_the_more_clusters_flipped_the_more_their_design_effect_counts() -> None:
    """Flips that are independent of their cluster: from 10 towards 1."""
    generator = np.random.default_rng(4)
    effects = []
    for clusters in (4, 40, 400):
        flips = generator.choice([-1.0, 0.0, 1.0], clusters * 10, p=[0.05, 0.9, 0.05])
        effects.append(design_effect_seen(sample(flips, tens(clusters * 10))))
    assert effects[0] > effects[1] > effects[2]
    assert effects[2] < 1.5
    whole = np.repeat(generator.choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.9, 0.05]), 10)
    assert design_effect_seen(sample(whole, tens(4000))) == pytest.approx(10, rel=0.05)


def test_limits_of_few_clusters_are_drawn_out() -> None:
    values = np.random.default_rng(5).normal(0, 1, 2000)
    few, many = (percentile_limits(values, 0.0, count, 0.95) for count in (5, 5000))
    assert many == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), rel=0.01)
    wider = stats.t.ppf(0.975, 4) / stats.norm.ppf(0.975) * math.sqrt(5 / 4)
    assert few[1] == pytest.approx(many[1] * wider, rel=0.01)
