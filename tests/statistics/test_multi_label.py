"""Scores of labels against scikit-learn, whole and resampled."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from lora_kit.statistics.labels import count_confusions, label_scores
from lora_kit.statistics.multi_label import (
    choose_thresholds,
    macro_f1,
    mean_average_precision,
    micro_f1,
)

RANDOM = np.random.default_rng(0)
TRUE = (RANDOM.random((60, 3)) < (0.2, 0.5, 0.7)).astype(float)
SCORES = (TRUE + RANDOM.normal(size=(60, 3))).round(1)
GIVEN = (SCORES > 0.5).astype(float)
COUNTS = RANDOM.integers(0, 3, size=60)


@pytest.mark.parametrize(
    ("statistic", "library"),
    [
        (micro_f1(GIVEN, TRUE), lambda rows: f1_score(TRUE[rows], GIVEN[rows], average="micro")),
        (macro_f1(GIVEN, TRUE), lambda rows: f1_score(TRUE[rows], GIVEN[rows], average="macro")),
        (
            mean_average_precision(SCORES, TRUE),
            lambda rows: average_precision_score(TRUE[rows], SCORES[rows], average="macro"),
        ),
    ],
)
def test_scores_are_those_of_scikit_learn_also_where_items_are_drawn_several_times(
    statistic: object, library: object
) -> None:
    whole, resampled = statistic(np.stack([np.ones(60), COUNTS.astype(float)]))  # type: ignore[operator]
    assert whole == pytest.approx(library(np.arange(60)))  # type: ignore[operator]
    assert resampled == pytest.approx(library(np.repeat(np.arange(60), COUNTS)))  # type: ignore[operator]


def test_labels_that_no_item_has_are_left_out() -> None:
    true = np.hstack([TRUE, np.zeros((60, 1))])
    given, scores = np.hstack([GIVEN, GIVEN[:, :1]]), np.hstack([SCORES, SCORES[:, :1]])
    every = np.ones((1, 60))
    assert macro_f1(given, true)(every) == pytest.approx(macro_f1(GIVEN, TRUE)(every))
    assert mean_average_precision(scores, true)(every) == pytest.approx(
        mean_average_precision(SCORES, TRUE)(every)
    )
    assert np.isnan(macro_f1(given[:, 3:], true[:, 3:])(every)[0])


def test_thresholds_have_the_highest_f1_of_all() -> None:
    shares = 1 / (1 + np.exp(-SCORES))
    for number, threshold in enumerate(choose_thresholds(shares, TRUE, 0.5)):
        right = TRUE[:, number]
        found = f1_score(right, shares[:, number] >= threshold)
        levels = [0.0, *np.unique(shares[:, number])]
        assert found == max(f1_score(right, shares[:, number] >= level) for level in levels)
    constant = np.full((60, 1), 0.2)
    assert choose_thresholds(constant, TRUE[:, :1], 0.5) == [0.0]
    assert choose_thresholds(constant, np.zeros((60, 1)), 0.5) == [0.5]


def test_a_class_has_the_average_precision_of_scikit_learn_against_all_others() -> None:
    truth = ["a", "b", "c", "a", "b", "a"]
    given = ["a", "b", "b", "c", "b", "other"]
    shares = {name: RANDOM.random(6) for name in "abc"}
    found = label_scores(given, truth, shares)
    for one in found.classes:
        right = np.array([label == one.label for label in truth])
        assert one.average_precision == average_precision_score(right, shares[one.label])
    assert found.macro_average_precision == pytest.approx(
        np.mean([one.average_precision for one in found.classes])
    )
    assert label_scores(given, truth).classes[0].average_precision is None
    matrix = count_confusions(given, truth)
    assert matrix.labels == ("a", "b", "c")
    assert matrix.counts == ((1, 0, 1, 1), (0, 2, 0, 0), (0, 1, 0, 0))
