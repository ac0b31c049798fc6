"""Out-of-fold probabilities: no row is judged by a probe that saw it or its group."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lora_kit.modeling.linear_probe import C_VALUES
from lora_kit.modeling.out_of_fold import out_of_fold


def _blobs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    centres = np.eye(3, 6)[labels] * 2
    return (centres + random.normal(size=(rows, 6))).astype(np.float32), labels


def test_probabilities_are_those_of_scikit_learn() -> None:
    features, labels = _blobs(90)
    groups = np.arange(90) // 2
    found = out_of_fold(features, labels, groups, 3)
    assert found is not None
    losses, probabilities = {}, {}
    for penalty in C_VALUES:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2_000))
        folds = StratifiedGroupKFold(5)
        each = cross_val_predict(
            probe, features, labels, groups=groups, cv=folds, method="predict_proba"
        )
        probabilities[penalty] = each
        losses[penalty] = -np.log(each[np.arange(90), labels]).mean()
    assert found.penalty == min(losses, key=lambda penalty: losses[penalty])
    assert np.allclose(found.probabilities, probabilities[found.penalty], atol=1e-3)
    assert found.known.all()


def test_a_row_is_not_judged_by_its_own_group() -> None:
    """Rows of a group are copies with a random label: only a copy could tell it."""
    random = np.random.default_rng(1)
    features = np.repeat(random.normal(size=(60, 80)), 2, axis=0).astype(np.float32)
    labels = np.repeat(random.integers(0, 2, 60), 2)
    together = out_of_fold(features, labels, np.arange(120) // 2, 2)
    apart = out_of_fold(features, labels, np.arange(120), 2)
    assert together is not None
    assert apart is not None
    assert (apart.probabilities.argmax(axis=1) == labels).mean() > 0.8
    assert (together.probabilities.argmax(axis=1) == labels).mean() < 0.7


def test_a_class_in_one_group_is_unknown_and_one_group_gives_nothing() -> None:
    features, labels = _blobs(30)
    labels = np.where(np.arange(30) < 2, 2, labels % 2)
    groups = np.where(labels == 2, 0, np.arange(30))
    found = out_of_fold(features, labels, groups, 3)
    assert found is not None
    assert np.flatnonzero(~found.known).tolist() == [0, 1]
    assert np.allclose(found.probabilities.sum(axis=1), 1)
    assert out_of_fold(features, labels, np.zeros(30, np.int64), 3) is None
