"""The choice among trials, and what the sampler is told of them."""

from dataclasses import replace

import pytest

from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.selection.sweep.choice import choose_trial, hopeless, objective
from tests.evaluation.reports import GAIN, KNOWLEDGE
from tests.selection.sweep.results import RATE, trial, verdict

TWO = GAIN.model_copy(
    update={"tasks": [GAIN.tasks[0].model_copy(update={"name": name}) for name in ("a", "b")]}
)


def noisier(one: Verdict, factor: float) -> Verdict:
    """Return a verdict with wider intervals of the same gains."""

    def wider(task: TaskVerdict) -> TaskVerdict:
        interval = task.interval
        width = (interval.high - interval.low) * factor / 2
        low, high = interval.delta - width, interval.delta + width
        return replace(task, interval=replace(interval, low=low, high=high))

    suites = [
        replace(suite, tasks=tuple(map(wider, suite.tasks))) if suite.role == "gain" else suite
        for suite in one.suites
    ]
    return replace(one, suites=tuple(suites))


def test_a_single_task_is_told_in_its_own_unit() -> None:
    gain = verdict(2.0, 0).suites[0].tasks[0].interval.delta
    assert objective(verdict(2.0, 0), verdict(1.0, 0)) == pytest.approx(gain)


def test_noise_of_a_larger_gain_is_no_loss_for_the_sampler() -> None:
    first = verdict(1.0, 0, (TWO, KNOWLEDGE))
    larger = verdict(2.0, 0, (TWO, KNOWLEDGE))
    assert objective(noisier(larger, 9.0), first) == pytest.approx(objective(larger, first))
    assert objective(larger, first) > objective(first, first) > 0
    assert objective(noisier(larger, 9.0), noisier(larger, 9.0)) < objective(first, first)


def test_the_largest_gain_of_those_that_keep_retention_wins_and_the_earlier_of_equal_ones() -> None:
    trials = [
        trial(0, {}, verdict(1.0, 0)),
        trial(1, {RATE: "0.1"}, verdict(3.0, 60)),
        trial(2, {RATE: "0.01"}, verdict(2.0, 0)),
        trial(3, {RATE: "0.02"}, verdict(2.0, 0)),
    ]
    assert choose_trial(trials).chosen == 2
    assert choose_trial(trials[1:2]).chosen is None
    assert choose_trial([trial(0, {}, verdict(0.0, 0))]).chosen is None


def test_few_items_end_a_trial_that_forgets_or_gains_less() -> None:
    best = verdict(3.0, 0)
    assert not hopeless(verdict(2.9, 0), best)
    assert "more forgetting" in hopeless(verdict(9.0, 120), best)
    assert "less gain" in hopeless(verdict(0.5, 0), best)
    assert not hopeless(verdict(0.5, 0), None)
