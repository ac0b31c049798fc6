"""Self-training: thresholds by class, and folds that do not tell a row its own class."""

import numpy as np

from lora_kit.modeling.out_of_fold import OutOfFold, grouped_folds
from lora_kit.modeling.self_training import (
    LabelledFeatures,
    class_thresholds,
    judged_with,
    self_train,
)


def test_a_threshold_is_the_lowest_that_keeps_the_precision() -> None:
    # Class 0: right, right, right, right, right, wrong, right; class 1: too few rows.
    best = np.array([0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.9, 0.8])
    probabilities = np.stack([best, 1 - best], axis=1)
    probabilities[7:] = probabilities[7:, ::-1]
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 1, 1])
    found = OutOfFold(probabilities, np.ones(9, bool), 1.0)
    assert class_thresholds(found, labels, 0.9) == [0.8, np.inf]
    # Six of seven are right: 0.857.
    assert class_thresholds(found, labels, 0.85) == [0.7, np.inf]
    unknown = OutOfFold(probabilities, np.arange(9) > 4, 1.0)
    assert class_thresholds(unknown, labels, 0.5) == [np.inf, np.inf]


def test_texts_do_not_tell_a_row_its_own_class() -> None:
    """Texts are copies of rows, so that a probe that saw a row knows its copies' class."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 80)
    features = generator.normal(size=(80, 120)).astype(np.float32)
    features[:, 0] += 3 * labels
    texts = np.repeat(features, 5, axis=0)
    rows = LabelledFeatures(features, labels, np.arange(80), 2)
    told: list[tuple[int, int]] = []
    found = self_train(rows, texts, 0.01, 1, lambda *one: told.append(one))
    assert found is not None
    assert told == [(1, 400)]

    def accuracy(one: OutOfFold) -> float:
        return float((one.probabilities.argmax(axis=1) == labels).mean())

    assert len(found.chosen.numbers) == 400
    assert accuracy(found.after) < accuracy(found.before) + 0.05
    # With one probe of all rows for all folds, each row's copies tell its class.
    folds = grouped_folds(labels, np.arange(80))
    shared = [found.chosen.added(texts)] * len(folds)
    assert accuracy(judged_with(rows, folds, shared, found.before)) > accuracy(found.before) + 0.15
    # One group gives no folds.
    alone = LabelledFeatures(features, labels, np.zeros(80, np.int64), 2)
    assert self_train(alone, texts, 0.9, 1, lambda *_: None) is None
