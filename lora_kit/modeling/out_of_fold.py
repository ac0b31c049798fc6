"""Out-of-fold probabilities: a linear probe's probabilities for rows that it was not fitted to."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_kit.modeling.linear_probe import C_VALUES, FOLDS

# Lowest probability in the loss by which the penalty is chosen.
_FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class AddedRows:
    """Rows that a probe is fitted to besides the labelled ones.

    Attributes:
        features: (rows, features) float32.
        labels: (rows,) int64, class of each row.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Probabilities of each row's classes by probes that were fitted to other rows.

    Attributes:
        probabilities: (rows, classes) float64; each row sums to 1.
        known: (rows,) bool; false where the probe of the row's fold saw no row of its class, so
            that its probability says nothing.
        penalty: inverse regularization strength C, the one with the lowest loss.
    """

    probabilities: NDArray[np.float64]
    known: NDArray[np.bool_]
    penalty: float


def out_of_fold(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    classes: int,
) -> OutOfFold | None:
    """Fit a logistic regression per fold and predict the rows of that fold.

    The penalty is the one with the lowest out-of-fold cross-entropy, since confident learning needs
    calibrated probabilities; classes are not weighted for the same reason.

    Args:
        features: (rows, features) float32.
        labels: (rows,) int64, class of each row.
        groups: (rows,) int64; dependent rows share a group, and stay in one fold.
        classes: number of classes.

    Returns:
        The probabilities; `None` if the rows have too few groups for two folds with two classes.
    """
    folds = grouped_folds(labels, groups)
    if not folds:
        return None
    known = np.zeros(len(labels), np.bool_)
    for rest, held_out in folds:
        known[held_out] = np.isin(labels[held_out], labels[rest])
    best, lowest = None, np.inf
    for penalty, probabilities in _paths(features, labels, folds, classes):
        own = probabilities[np.arange(len(labels)), labels][known]
        loss = -np.log(np.maximum(own, _FLOOR)).mean()
        # The loss falls and then rises with C; weak penalties take the longest to fit.
        if loss >= lowest:
            break
        best, lowest = OutOfFold(probabilities, known, penalty), loss
    return best


def grouped_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return training and held-out rows of each fold; nothing if they cannot be made.

    Args:
        labels: (rows,) int64, class of each row.
        groups: (rows,) int64; dependent rows share a group, and stay in one fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(FOLDS, max(Counter(labels.tolist()).values()), len(np.unique(groups)))
    if count < 2:
        return []
    with warnings.catch_warnings():
        # scikit-learn warns if a fold has no row of some class, which `known` records.
        warnings.simplefilter("ignore", UserWarning)
        folds = list(StratifiedGroupKFold(count).split(labels, labels, groups))
    folds = [(rest, held_out) for rest, held_out in folds if len(held_out)]
    return [] if any(len(np.unique(labels[rest])) < 2 for rest, _ in folds) else folds


def _paths(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    classes: int,
) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Yield each penalty, the strongest first, with the probabilities of all rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scalers = [StandardScaler().fit(features[rest]) for rest, _ in folds]
    probes: list[Any] = [LogisticRegression(max_iter=2_000, warm_start=True) for _ in folds]
    for penalty in C_VALUES:
        probabilities = np.zeros((len(labels), classes))
        for (rest, held_out), scaler, probe in zip(folds, scalers, probes, strict=True):
            # From the weights of the stronger penalty before, which are close.
            probe.set_params(C=penalty).fit(scaler.transform(features[rest]), labels[rest])
            predicted = probe.predict_proba(scaler.transform(features[held_out]))
            probabilities[np.ix_(held_out, probe.classes_)] = predicted
        yield penalty, probabilities


def fitted_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    penalty: float,
    added: AddedRows | None = None,
) -> Any:
    """Fit the logistic regression of `out_of_fold` to all rows.

    Args:
        features: (rows, features) float32.
        labels: (rows,) int64, class of each row.
        penalty: inverse regularization strength C.
        added: further rows.

    Returns:
        scikit-learn pipeline of a `StandardScaler` and a `LogisticRegression`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2_000))
    return probe.fit(*_with_added(features, labels, added))


def _with_added(
    features: NDArray[np.float32], labels: NDArray[np.int64], added: AddedRows | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if added is None:
        return features, labels
    return np.concatenate([features, added.features]), np.concatenate([labels, added.labels])
