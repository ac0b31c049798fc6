import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from lora_kit.statistics.calibration import calibration, compare_calibration


def each(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def draws(items: int, sharpness: float, seed: int) -> tuple[list[list[float]], list[int]]:
    """Answers drawn from probabilities, which are then told as sharper (or flatter)."""
    generator = np.random.default_rng(seed)
    true = generator.dirichlet([0.7] * 4, items)
    answers = [int(generator.choice(4, p=row)) for row in true]
    told = true**sharpness
    return (told / told.sum(axis=1, keepdims=True)).tolist(), answers


def test_bins_by_hand() -> None:
    found = calibration([[0.9, 0.1], [0.91, 0.09], [0.4, 0.6]], [0, 1, 1])
    # (12/15, 13/15] is empty; 0.9 and 0.91 lie in (13/15, 14/15], half of them right.
    filled = [bar for bar in found.bins if bar.count]
    assert [bar.count for bar in filled] == [1, 2]
    assert (filled[0].confidence, filled[0].accuracy) == pytest.approx((0.6, 1.0))
    assert (filled[1].confidence, filled[1].accuracy) == pytest.approx((0.905, 0.5))
    assert found.ece == pytest.approx((0.4 + 2 * 0.405) / 3)
    assert found.brier == pytest.approx((2 * 0.1**2 + 2 * 0.91**2 + 2 * 0.4**2) / 3)
    assert all(bar.accuracy is None for bar in found.bins if not bar.count)


def test_brier_is_scikit_learns() -> None:
    told, answers = draws(200, 1.0, seed=1)
    expected = brier_score_loss(answers, np.asarray(told), scale_by_half=False)
    assert calibration(told, answers).brier == pytest.approx(expected)


def test_ece_is_the_mean_of_its_bins() -> None:
    found = calibration(*draws(500, 2.0, seed=2))
    by_bin = sum(
        bar.count * abs(bar.accuracy - bar.confidence)
        for bar in found.bins
        if bar.accuracy is not None and bar.confidence is not None
    )
    assert found.ece == pytest.approx(by_bin / 500)
    assert sum(bar.count for bar in found.bins) == 500


def test_a_certain_and_right_model_is_calibrated() -> None:
    found = calibration([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert (found.ece, found.brier) == (0, 0)


def test_becoming_too_sure_is_a_loss_for_certain() -> None:
    honest, answers = draws(600, 1.0, seed=3)
    boastful, _ = draws(600, 4.0, seed=3)
    found = compare_calibration(honest, boastful, answers, each(600), 0.95)
    assert found.after.ece > found.before.ece
    assert found.ece.delta == pytest.approx(found.before.ece - found.after.ece)
    assert found.ece.high < 0
    assert found.brier.delta == pytest.approx(found.before.brier - found.after.brier)
    assert found.brier.high < 0


def test_the_same_model_is_not_different() -> None:
    told, answers = draws(100, 1.0, seed=4)
    found = compare_calibration(told, told, answers, each(100), 0.95)
    assert (found.ece.delta, found.brier.delta) == (0, 0)


def test_one_cluster_says_nothing_of_others() -> None:
    told, answers = draws(30, 1.0, seed=5)
    found = compare_calibration(told, told, answers, ["a"] * 30, 0.95)
    assert (found.ece.low, found.ece.high) == (-math.inf, math.inf)
    assert found.ece.clusters == 1


@pytest.mark.parametrize(
    ("probabilities", "answers", "part"),
    [
        ([], [], "no items"),
        ([[0.5, 0.5]], [0, 1], "1 items but 2 answers"),
        ([[0.5, 0.4]], [0], "item 0.*add up to 1"),
        ([[1.5, -0.5]], [0], "item 0.*add up to 1"),
        ([[0.5, math.nan]], [0], "item 0"),
        ([[0.5, 0.5]], [2], "no choice 2 of 2"),
    ],
)
def test_what_is_no_probability_is_refused(
    probabilities: list[list[float]], answers: list[int], part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        calibration(probabilities, answers)


def test_arms_with_other_choices_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same items and choices"):
        compare_calibration([[0.5, 0.5]], [[0.5, 0.25, 0.25]], [0], ["a"], 0.95)
