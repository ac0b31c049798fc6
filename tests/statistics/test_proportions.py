import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from lora_kit.statistics.proportions import (
    critical_score,
    exact_p,
    mcnemar_p,
    score_p,
    tail_probability,
    tango_limits,
    tango_score,
)

TABLES = [(1, 7, 21), (40, 20, 160), (0, 3, 60), (5, 0, 44), (0, 0, 50), (12, 9, 90)]


def score_by_maximising(won: int, lost: int, items: int, delta: float) -> float:
    """Compute the score at `delta`, with the probability of a loss estimated numerically."""

    def unlikely(q: float) -> float:
        return -float(
            special.xlogy(won, q + delta)
            + special.xlogy(lost, q)
            + special.xlogy(items - won - lost, 1 - 2 * q - delta)
        )

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    q = optimize.minimize_scalar(
        unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    return float((won - lost - items * delta) / math.sqrt(items * (2 * q + delta - delta**2)))


@pytest.mark.parametrize("table", TABLES)
def test_tangos_limits_are_the_roots_of_the_score(table: tuple[int, int, int]) -> None:
    won, lost, items = table
    delta, z = (won - lost) / items, stats.norm.ppf(0.975)
    low, high = tango_limits(won, lost, items, 0.95)
    for result, end, target in ((low, -0.99, z), (high, 0.99, -z)):
        root = optimize.brentq(
            lambda value, target=target: score_by_maximising(won, lost, items, value) - target,
            delta + math.copysign(1e-6, end),
            end,
        )
        assert result == pytest.approx(root, abs=1e-5)


def test_swapped_arms_have_swapped_limits() -> None:
    low, high = tango_limits(9, 2, 70, 0.9)
    assert tango_limits(2, 9, 70, 0.9) == pytest.approx((-high, -low))
    assert tango_score(9, 2, 70, 0.05) == pytest.approx(-tango_score(2, 9, 70, -0.05))


def test_flips_in_one_direction_only_have_a_limit_at_the_end() -> None:
    assert tango_limits(8, 0, 8, 0.95)[1] == 1.0
    assert tango_limits(0, 8, 8, 0.95)[0] == -1.0


def test_without_a_margin_the_score_is_mcnemars_statistic() -> None:
    assert float(tango_score(17, 8, 200, 0.0)) == pytest.approx((17 - 8) / math.sqrt(17 + 8))
    assert float(tango_score(0, 0, 200, 0.0)) == 0.0


@pytest.mark.parametrize(("won", "lost"), [(0, 5), (5, 0), (12, 3), (7, 7), (40, 61), (0, 0)])
def test_mcnemar_equals_the_binomial_test(won: int, lost: int) -> None:
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar_p(won, lost) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("won", "lost", "items", "margin"),
    [(0, 0, 60, 0.05), (3, 2, 60, 0.05), (1, 1, 80, 0.05), (5, 4, 45, 0.1), (2, 9, 50, -0.05)],
)
def test_the_exact_p_is_the_sum_over_all_outcomes(
    won: int, lost: int, items: int, margin: float
) -> None:
    wins, losses = np.meshgrid(np.arange(items + 1), np.arange(items + 1), indexing="ij")
    possible = wins + losses <= items
    reached = (
        tango_score(wins, losses, items, margin) >= tango_score(won, lost, items, margin) - 1e-9
    )
    wins, losses = wins[possible & reached], losses[possible & reached]
    same = items - wins - losses
    ways = special.gammaln(items + 1) - sum(special.gammaln(n + 1) for n in (wins, losses, same))
    worst = 0.0
    for rate in np.linspace(abs(margin), 1, 2000):
        won_rate, lost_rate = max((rate - margin) / 2, 0.0), max((rate + margin) / 2, 0.0)
        logs = special.xlogy(wins, won_rate) + special.xlogy(losses, lost_rate)
        worst = max(worst, float(np.exp(ways + logs + special.xlogy(same, 1 - rate)).sum()))
    assert exact_p(won, lost, items, margin) == pytest.approx(worst, abs=3e-4)


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.3, -0.05])
def test_the_score_increases_with_the_wins_among_the_flips(margin: float) -> None:
    """`tail_probability` relies on this."""
    for items in (20, 150):
        for flips in range(1, items + 1):
            wins = np.arange(flips + 1)
            assert (np.diff(tango_score(wins, flips - wins, items, margin)) > 0).all()


def test_the_critical_score_is_where_both_tests_reject() -> None:
    threshold = critical_score(100, 0.05, 0.05)
    for won in range(8):
        for lost in range(8):
            both = max(exact_p(won, lost, 100, 0.05), score_p(won, lost, 100, 0.05)) <= 0.05
            assert both == (float(tango_score(won, lost, 100, 0.05)) >= threshold)


def test_no_outcome_of_very_few_items_rejects() -> None:
    assert tail_probability(
        critical_score(5, 0.05, 0.05), 5, 0.05, np.array([0.0]), np.array([0.0])
    ) == pytest.approx(0.0)


@pytest.mark.parametrize(("won", "lost", "items"), [(0, 0, 0), (5, 6, 10), (-1, 0, 10)])
def test_impossible_counts_are_refused(won: int, lost: int, items: int) -> None:
    with pytest.raises(ValueError, match=r"no items|impossible counts"):
        tango_limits(won, lost, items, 0.95)
    with pytest.raises(ValueError, match=r"no items|impossible counts"):
        exact_p(won, lost, items, 0.05)
