"""Interval of a difference over the folds of a cross-validation.

Adapters of different folds share most of their training rows, so that their scores are not
independent: the variance of the mean is underestimated by s^2 / k. Nadeau and Bengio 2003 (Machine
Learning 52:239, section 3) correct it to (1 / k + held-out rows / training rows) s^2, with k - 1
degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from lora_kit.statistics.decisions import Interval


def compare_folds(
    differences: Sequence[float], sizes: Sequence[int], alpha: float
) -> tuple[Interval, float]:
    """Return the interval of the mean difference and its two-sided p-value of no difference.

    Args:
        differences: difference of the scores of each fold, weighed alike.
        sizes: held-out rows of each fold.
        alpha: level of the test.

    Raises:
        ValueError: with fewer than two folds.
    """
    folds = len(differences)
    if folds < 2:
        raise ValueError(f"differences: a spread needs two folds at least (got {folds})")
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    # Of all rows, 1 / k are held out in a fold.
    error = spread * math.sqrt(1 / folds + 1 / (folds - 1))
    # Equal differences have no spread to estimate an interval from.
    width, p = math.inf, 1.0
    if error:
        width = error * float(stats.t.ppf(1 - alpha / 2, folds - 1))
        p = 2 * float(stats.t.sf(abs(mean) / error, folds - 1))
    return Interval(mean, mean - width, mean + width, 1 - alpha, sum(sizes), folds), p
