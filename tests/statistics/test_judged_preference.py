"""Preferences corrected for the errors of the judge."""

import numpy as np
import pytest

from lora_kit.statistics.judged_preference import (
    JudgeAccuracy,
    compare_preference,
    corrected_preference,
)


def names(count: int) -> list[str]:
    return [str(n) for n in range(count)]


def test_a_perfect_judge_is_hardly_corrected() -> None:
    judged = np.repeat([1.0, 0.5, 0.0], [60, 20, 20])
    accuracy = JudgeAccuracy(1.0, 5000, 1.0, 5000, False)
    found = compare_preference(judged - 0.5, names(100), accuracy, 0.05, None, with_first=True)
    assert found.interval.delta == pytest.approx(0.2, abs=1e-3)
    error = judged.std(ddof=1) / 10
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.984 * error, rel=0.01)
    assert found.decision == "PASS"
    assert corrected_preference(0.7, accuracy) == pytest.approx(0.7, abs=1e-3)


def test_the_estimate_is_that_of_rogan_and_gladen() -> None:
    accuracy = JudgeAccuracy(0.8, 10_000, 0.7, 10_000, False)
    assert corrected_preference(0.55, accuracy) == pytest.approx((0.55 + 0.7 - 1) / 0.5, abs=1e-3)
    judged = np.repeat([1.0, 0.0], [55, 45])
    found = compare_preference(judged - 0.5, names(100), accuracy, 0.05, None, with_first=True)
    assert found.interval.delta == pytest.approx(0.0, abs=1e-3)
    # Of two arms, what the judge leans to cancels.
    both = compare_preference(
        np.full(100, 0.1) + np.linspace(-0.1, 0.1, 100),
        names(100),
        accuracy,
        0.05,
        None,
        with_first=False,
    )
    assert both.interval.delta == pytest.approx(0.1 / 0.5, abs=1e-3)


@pytest.mark.parametrize("right", [0.5, 0.55, 0.2])
def test_a_judge_that_is_not_shown_to_beat_chance_says_nothing(right: float) -> None:
    accuracy = JudgeAccuracy(right, 20, right, 20, True)
    found = compare_preference(np.full(50, 0.5), names(50), accuracy, 0.05, None, with_first=True)
    assert (found.interval.low, found.interval.high) == (-0.5, 0.5)
    assert found.decision == "INCONCLUSIVE"
    assert found.p == 1.0


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_interval_and_test_decide_alike(margin: float | None, symmetric: bool) -> None:
    accuracy = JudgeAccuracy(0.8, 40, 0.8, 40, symmetric)
    decisions = set()
    for won in range(0, 121, 4):
        judged = np.repeat([1.0, 0.0], [won, 120 - won])
        found = compare_preference(
            judged - 0.5, names(120), accuracy, 0.05, margin, with_first=True
        )
        decisions.add(found.decision)
        better, worse = found.one_sided
        level = 0.025 if margin is None else 0.05
        assert (found.decision == "PASS") == (better <= level)
        assert (found.decision == "FAIL") == (worse <= level)
        assert found.interval.low <= found.interval.delta <= found.interval.high
    assert decisions == {"PASS", "FAIL", "INCONCLUSIVE"}


@pytest.mark.parametrize(
    ("true", "sensitivity", "specificity", "symmetric"),
    [(0.8, 0.8, 0.9, False), (0.5, 0.9, 0.6, False), (0.65, 0.75, 0.75, True)],
)
def test_intervals_hold_the_truth(
    true: float, sensitivity: float, specificity: float, symmetric: bool
) -> None:
    random, runs, held, naive = np.random.default_rng(5), 400, 0, 0
    for _ in range(runs):
        better = random.random(150) < true
        chance = np.where(better, sensitivity, 1 - specificity)
        judged = (random.random(150) < chance).astype(float)
        a = float((random.random(40) < sensitivity).mean())
        c = a if symmetric else float((random.random(40) < specificity).mean())
        found = compare_preference(
            judged - 0.5,
            names(150),
            JudgeAccuracy(a, 40, c, 40, symmetric),
            0.05,
            None,
            with_first=True,
        )
        held += found.interval.low <= true - 0.5 <= found.interval.high
        error = judged.std(ddof=1) / np.sqrt(150)
        naive += abs(judged.mean() - true) <= 1.976 * error
    assert held / runs > 0.93
    assert naive / runs < 0.9
