"""Error that the looks at growing data may spend, and the level that each look has.

A test that is repeated at one level as the data grow rejects too often. Here each look spends a
part of the error (Lan & DeMets 1983, Biometrika 70:659), and its level is such that all looks
together have alpha: the recursive integration of Armitage, McPherson & Rowe (1969, JRSS A 132:235),
as in Jennison & Turnbull, Group Sequential Methods with Applications to Clinical Trials (2000),
chapter 19. It assumes what holds for large samples: the statistic is a sum of independent
increments, with the share of the data as its information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from lora_kit.statistics.clusters import Floats

# Standard deviations beyond which a density counts as nothing, and points of the integration.
REACH, POINTS = 8.5, 80
# A look that may spend less than this decides nothing.
LEAST_ERROR = 1e-12


def spent_error(share: float, alpha: float, shape: float) -> float:
    """Return the error that may be spent up to a share of the data.

    The family of Hwang, Shih & DeCani (1990, Statistics in Medicine 9:1439).

    Args:
        share: share of the data, from 0 to 1.
        alpha: error in total.
        shape: their gamma. Below 0, early looks spend little (-4 is near O'Brien & Fleming's
            boundaries); above 0, much (1 is near Pocock's).
    """
    if shape == 0:
        return alpha * share
    return alpha * math.expm1(-shape * share) / math.expm1(-shape)


def look_levels(shares: Sequence[float], alpha: float, shape: float) -> tuple[float, ...]:
    """Return the one-sided level of each look, so that all together have `alpha`.

    A confidence interval of a look's level is a repeated one: it holds whenever one stops (Jennison
    & Turnbull 1989, JRSS B 51:305).

    Args:
        shares: share of the data at each look, increasing; the last one is 1.
        alpha: one-sided error in total, between 0 and 1.
        shape: as in `spent_error`.

    Returns:
        A level for each look; 0 where a look cannot decide.

    Raises:
        ValueError: if the shares do not increase from above 0 to 1.
    """
    if any(b <= a for a, b in zip((0.0, *shares), shares, strict=False)) or tuple(shares[-1:]) != (
        1.0,
    ):
        raise ValueError(f"shares: do not increase from above 0 to 1 (got {list(shares)})")
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    levels = []
    # Cumulated statistic of the paths that no look has ended: values and their probabilities.
    values, masses = np.zeros(1), np.ones(1)
    before = spent = 0.0
    for share in shares:
        step, reach = math.sqrt(share - before), REACH * math.sqrt(share)
        error = spent_error(share, alpha, shape) - spent
        bound = _bound(values, masses, step, reach, error)
        levels.append(0.0 if bound == reach else float(ndtr(-bound / math.sqrt(share))))
        half = (bound + reach) / 2
        reached = half * (nodes + 1) - reach
        density = _normal_density((reached[:, None] - values) / step) @ masses / step
        values, masses = reached, density * weights * half
        before, spent = share, spent + error
    return tuple(levels)


def _bound(values: Floats, masses: Floats, step: float, reach: float, error: float) -> float:
    """Return the bound that a path crosses in this step with probability `error`.

    Args:
        values: cumulated statistic before the step.
        masses: probability of each value.
        step: standard deviation of the step.
        reach: largest bound; returned if the error is too small to be spent.
        error: probability to spend.
    """

    def excess(bound: float) -> float:
        return float(masses @ ndtr((values - bound) / step)) - error

    if error < LEAST_ERROR or excess(reach) > 0:
        return reach
    return float(brentq(excess, -reach, reach, xtol=1e-12))


def _normal_density(z: Floats) -> Floats:
    density: Floats = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return density
