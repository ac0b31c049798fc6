"""Levels of the looks: known boundaries, and the error in total, by integration and simulation."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from lora_kit.statistics.spending import look_levels, spent_error

EVENLY = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("shape", "alpha", "bounds"),
    [
        # Jennison & Turnbull's gamma family, five equal looks, one-sided 2.5%.
        (-4, 0.025, (3.25, 2.99, 2.69, 2.37, 2.03)),
        (1, 0.025, (2.45, 2.42, 2.40, 2.39, 2.40)),
    ],
)
def test_bounds_are_those_that_are_published(
    shape: float, alpha: float, bounds: tuple[float, ...]
) -> None:
    found = norm.isf(look_levels(EVENLY, alpha, shape))
    assert found == pytest.approx(bounds, abs=0.006)


def test_one_look_has_the_level_of_a_test() -> None:
    assert look_levels([1.0], 0.05, -4) == pytest.approx((0.05,), rel=1e-9)


@pytest.mark.parametrize("shape", [-8, -4, 0, 1])
def test_the_error_spent_up_to_a_look_is_that_of_the_function(shape: float) -> None:
    """By another integration: of the joint normal distribution of three looks."""
    shares = (0.15, 0.5, 1.0)
    bounds = norm.isf(look_levels(shares, 0.05, shape))
    covariance = [[math.sqrt(min(a, b) / max(a, b)) for a in shares] for b in shares]
    for count in (1, 2, 3):
        joint = multivariate_normal(cov=np.array(covariance)[:count, :count], abseps=1e-7)
        crossed = 1 - joint.cdf(bounds[:count])
        assert crossed == pytest.approx(spent_error(shares[count - 1], 0.05, shape), abs=2e-6)


@pytest.mark.parametrize("looks", [3, 5, 10])
@pytest.mark.parametrize("shape", [-4, 1])
def test_random_paths_cross_as_often_as_is_allowed(looks: int, shape: float) -> None:
    draws = 200_000
    steps = np.random.default_rng(looks).normal(size=(draws, looks))
    paths = steps.cumsum(axis=1) / np.sqrt(np.arange(1, looks + 1))
    bounds = norm.isf(look_levels([(n + 1) / looks for n in range(looks)], 0.05, shape))
    crossed = (paths > bounds).any(axis=1).mean()
    assert crossed == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / draws))


def test_a_look_that_may_spend_nothing_decides_nothing() -> None:
    first, last = look_levels([0.001, 1.0], 0.05, -40)
    assert first == 0
    assert last == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (0.5, 1.0, 1.1)])
def test_shares_that_do_not_increase_to_all_of_the_data_are_refused(
    shares: tuple[float, ...],
) -> None:
    with pytest.raises(ValueError, match="shares: do not increase"):
        look_levels(shares, 0.05, -4)
