"""Scores of predicted numbers over weighted items: R2, RMSE and Spearman's rank correlation.

Each function returns a statistic for the bootstrap: from weights, (resamples, items), to values,
(resamples,). With several outputs it is the mean over them, as in scikit-learn.
"""

from __future__ import annotations

import numpy as np

from lora_kit.statistics.bootstrap import Statistic
from lora_kit.statistics.clusters import Floats


def r2(predicted: Floats, true: Floats) -> Statistic:
    """Return the coefficient of determination, 1 - SSE / SST.

    The mean of SST is that of the resample. NaN for a resample in which all items have the same
    number.

    Args:
        predicted: (items, outputs).
        true: (items, outputs).
    """
    # Around the mean of all items, so that the sums of squares lose no digits.
    centred = true - true.mean(axis=0)
    errors = (predicted - true) ** 2

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(axis=1, keepdims=True)
        spread = weights @ centred**2 - (weights @ centred) ** 2 / total
        unexplained = weights @ errors
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where(spread > 0, 1 - unexplained / spread, np.nan)
        return np.asarray(shares.mean(axis=1))

    return statistic


def rmse(predicted: Floats, true: Floats) -> Statistic:
    """Return the root mean squared error, in the unit of the numbers.

    Args:
        predicted: (items, outputs).
        true: (items, outputs).
    """
    errors = (predicted - true) ** 2

    def statistic(weights: Floats) -> Floats:
        means = (weights @ errors) / weights.sum(axis=1, keepdims=True)
        return np.asarray(np.sqrt(means).mean(axis=1))

    return statistic


def spearman(predicted: Floats, true: Floats) -> Statistic:
    """Return Spearman's rank correlation, with mean ranks for ties.

    0 for constant predictions, which have no covariance with any order; NaN for a resample in which
    all items have the same number.

    Args:
        predicted: (items, outputs).
        true: (items, outputs).
    """

    def statistic(weights: Floats) -> Floats:
        by_output = [
            _correlation(weights, _ranks(weights, given), _ranks(weights, right))
            for given, right in zip(predicted.T, true.T, strict=True)
        ]
        return np.asarray(np.mean(by_output, axis=0))

    return statistic


def _ranks(weights: Floats, values: Floats) -> Floats:
    """Return the mean rank of each item among the items of each resample, (resamples, items)."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.asarray((np.cumsum(sizes, axis=1) - sizes / 2)[:, group])


def _correlation(weights: Floats, given: Floats, right: Floats) -> Floats:
    """Return the weighted correlation of each row, (resamples,)."""
    total = weights.sum(axis=1, keepdims=True)
    given = given - (weights * given).sum(axis=1, keepdims=True) / total
    right = right - (weights * right).sum(axis=1, keepdims=True) / total
    covariance = (weights * given * right).sum(axis=1)
    spread = (weights * given**2).sum(axis=1)
    spread_right = (weights * right**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(spread > 0, covariance / np.sqrt(spread * spread_right), 0.0)
    return np.asarray(np.where(spread_right > 0, found, np.nan))
