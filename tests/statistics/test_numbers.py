"""Scores of numbers against scikit-learn and scipy, whole and resampled."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import r2_score, root_mean_squared_error

from lora_kit.statistics import numbers
from lora_kit.statistics.resampled import compare_statistics

RANDOM = np.random.default_rng(0)
TRUE = RANDOM.normal(size=(40, 2)).round(1)
GIVEN = (TRUE + RANDOM.normal(size=(40, 2))).round(1)
COUNTS = RANDOM.integers(0, 3, size=40)


@pytest.mark.parametrize(
    ("score", "library"),
    [
        (numbers.r2, r2_score),
        (numbers.rmse, root_mean_squared_error),
        (
            numbers.spearman,
            lambda true, given: np.mean([spearmanr(true[:, n], given[:, n])[0] for n in (0, 1)]),
        ),
    ],
)
def test_scores_are_those_of_the_libraries_also_where_items_are_drawn_several_times(
    score: object, library: object
) -> None:
    drawn = np.repeat(np.arange(40), COUNTS)
    weights = np.stack([np.ones(40), COUNTS.astype(float)])
    whole, resampled = score(GIVEN, TRUE)(weights)  # type: ignore[operator]
    assert whole == pytest.approx(library(TRUE, GIVEN))  # type: ignore[operator]
    assert resampled == pytest.approx(library(TRUE[drawn], GIVEN[drawn]))  # type: ignore[operator]


def test_a_constant_prediction_has_no_rank_and_explains_nothing() -> None:
    constant = np.full((40, 1), 3.0)
    true, every = TRUE[:, :1], np.ones((1, 40))
    assert numbers.spearman(constant, true)(every)[0] == 0.0
    assert numbers.r2(np.full((40, 1), true.mean()), true)(every)[0] == pytest.approx(0.0)
    assert np.isnan(numbers.r2(true, constant)(every)[0])
    assert np.isnan(numbers.spearman(true, constant)(every)[0])


def test_a_comparison_favours_the_arm_with_the_lower_error() -> None:
    true = TRUE[:, :1]
    good, bad = numbers.rmse(true + 0.1, true), numbers.rmse(true * -1, true)
    clusters = [str(n // 2) for n in range(40)]
    found = compare_statistics(bad, good, clusters, 0.05, None, higher_is_better=False)
    assert found.decision == "PASS"
    assert found.interval.low < found.interval.delta < found.interval.high
    assert compare_statistics(good, bad, clusters, 0.05, None, False).decision == "FAIL"
    lone = compare_statistics(bad, good, ["a"] * 40, 0.05, None, higher_is_better=False)
    assert lone.decision == "INCONCLUSIVE"
