"""Evidence of windows: means of exactly 1, independent windows, a rate that holds for all looks."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from lora_kit.statistics.exchangeability import (
    BLOCK,
    StreamEvidence,
    log_evidence,
    two_sided_log_evidence,
)


@pytest.mark.parametrize("evidence", [log_evidence, two_sided_log_evidence])
@pytest.mark.parametrize(("units", "count"), [(7, 3), (9, 1), (8, 7)])
def test_the_mean_over_all_choices_of_places_is_one(
    evidence: Callable[..., float], units: int, count: int
) -> None:
    choices = [np.array(one) for one in itertools.combinations(range(units), count)]
    mean = np.mean([math.exp(evidence(one, units)) for one in choices])
    assert mean == pytest.approx(1.0, abs=1e-9)


def test_unusual_windows_have_more_evidence_than_usual_ones() -> None:
    usual, first, last = np.arange(10, 400, 20), np.arange(20), np.arange(380, 400)
    assert log_evidence(usual, 400) < 0 < 10 < log_evidence(first, 400)
    assert log_evidence(last, 400) < 0 < 10 < two_sided_log_evidence(last, 400)


def test_a_third_of_a_window_at_the_first_places_suffices() -> None:
    places = np.concatenate([np.arange(30), np.arange(40, 1100, 15)[:70]])
    assert log_evidence(places, 1100) > 15


def test_large_windows_have_finite_evidence() -> None:
    assert math.isfinite(log_evidence(np.arange(0, 3000, 3), 3000))


def test_a_window_that_is_empty_or_alone_says_nothing() -> None:
    assert log_evidence(np.array([], dtype=np.int64), 9) == 0.0
    assert log_evidence(np.arange(9), 9) == 0.0


def test_prior_probabilities_of_all_blocks_add_up_to_one() -> None:
    stream = StreamEvidence()
    # Without evidence, a block keeps the prior probability of its windows.
    kept = [math.exp(stream.add(0.0)) for _ in range(50 * BLOCK)]
    of_blocks = kept[::BLOCK]
    assert kept[BLOCK - 1] == pytest.approx(of_blocks[0])
    assert sum(of_blocks) == pytest.approx(1.0, abs=1e-3)


def test_a_late_change_needs_little_more_evidence_than_an_early_one() -> None:
    stream = StreamEvidence()
    for _ in range(1007):
        quiet = stream.add(-2.0)
    assert quiet < 0
    assert stream.add(18.0) > math.log(20)


def test_windows_without_a_change_alarm_as_often_as_they_may() -> None:
    """Random order of units: the share of streams with an alarm stays below the level."""
    random = np.random.default_rng(5)
    alarms, streams, level = 0, 300, 0.2
    for _ in range(streams):
        stream, units = StreamEvidence(), 60
        for _ in range(20):
            units += 10
            places = random.permutation(units)[:10]
            if stream.add(log_evidence(places, units)) >= math.log(1 / level):
                alarms += 1
                break
    assert 0 < alarms / streams <= level
