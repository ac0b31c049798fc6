import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from lora_kit.statistics.calibration import compare_calibration, compute_calibration


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def draws(items: int, sharpness: float, seed: int) -> tuple[list[list[float]], list[int]]:
    """Draw answers from probabilities, and return the probabilities sharpened (or flattened)."""
    generator = np.random.default_rng(seed)
    true = generator.dirichlet([0.7] * 4, items)
    answers = [int(generator.choice(4, p=row)) for row in true]
    probabilities = true**sharpness
    return (probabilities / probabilities.sum(axis=1, keepdims=True)).tolist(), answers


def test_bins_by_hand() -> None:
    result = compute_calibration([[0.9, 0.1], [0.91, 0.09], [0.4, 0.6]], [0, 1, 1])
    # (12/15, 13/15] is empty; 0.9 and 0.91 lie in (13/15, 14/15], half of them right.
    filled = [bar for bar in result.bins if bar.count]
    assert [bar.count for bar in filled] == [1, 2]
    assert (filled[0].confidence, filled[0].accuracy) == pytest.approx((0.6, 1.0))
    assert (filled[1].confidence, filled[1].accuracy) == pytest.approx((0.905, 0.5))
    assert result.ece == pytest.approx((0.4 + 2 * 0.405) / 3)
    assert result.brier == pytest.approx((2 * 0.1**2 + 2 * 0.91**2 + 2 * 0.4**2) / 3)
    assert all(bar.accuracy is None for bar in result.bins if not bar.count)


def test_brier_score_equals_scikit_learns() -> None:
    probabilities, answers = draws(200, 1.0, seed=1)
    expected = brier_score_loss(answers, np.asarray(probabilities), scale_by_half=False)
    assert compute_calibration(probabilities, answers).brier == pytest.approx(expected)


def test_ece_is_the_mean_of_its_bins() -> None:
    result = compute_calibration(*draws(500, 2.0, seed=2))
    by_bin = sum(
        bar.count * abs(bar.accuracy - bar.confidence)
        for bar in result.bins
        if bar.accuracy is not None and bar.confidence is not None
    )
    assert result.ece == pytest.approx(by_bin / 500)
    assert sum(bar.count for bar in result.bins) == 500


def test_a_certain_and_right_model_is_calibrated() -> None:
    result = compute_calibration([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert (result.ece, result.brier) == (0, 0)


def test_overconfidence_is_a_significant_loss() -> None:
    honest, answers = draws(600, 1.0, seed=3)
    boastful, _ = draws(600, 4.0, seed=3)
    result = compare_calibration(honest, boastful, answers, each(600), 0.95)
    assert result.after.ece > result.before.ece
    assert result.ece.delta == pytest.approx(result.before.ece - result.after.ece)
    assert result.ece.high < 0
    assert result.brier.delta == pytest.approx(result.before.brier - result.after.brier)
    assert result.brier.high < 0


def test_the_same_model_has_no_difference() -> None:
    probabilities, answers = draws(100, 1.0, seed=4)
    result = compare_calibration(probabilities, probabilities, answers, each(100), 0.95)
    assert (result.ece.delta, result.brier.delta) == (0, 0)


def test_a_single_cluster_has_infinite_limits() -> None:
    probabilities, answers = draws(30, 1.0, seed=5)
    result = compare_calibration(probabilities, probabilities, answers, ["a"] * 30, 0.95)
    assert (result.ece.low, result.ece.high) == (-math.inf, math.inf)
    assert result.ece.clusters == 1


@pytest.mark.parametrize(
    ("probabilities", "answers", "part"),
    [
        ([], [], "no items"),
        ([[0.5, 0.5]], [0, 1], r"one for each of 1 items \(got 2\)"),
        ([[0.5, 0.4]], [0], "item 0.*add up to 1"),
        ([[1.5, -0.5]], [0], "item 0.*add up to 1"),
        ([[0.5, math.nan]], [0], "item 0"),
        ([[0.5, 0.5]], [2], r"no choice 2 \(got 2 choices\)"),
    ],
)
def test_invalid_probabilities_are_refused(
    probabilities: list[list[float]], answers: list[int], part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        compute_calibration(probabilities, answers)


def test_arms_with_other_choices_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same items and choices"):
        compare_calibration([[0.5, 0.5]], [[0.5, 0.25, 0.25]], [0], ["a"], 0.95)
