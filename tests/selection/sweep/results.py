"""Results of made-up sweeps."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict
from lora_kit.selection.sweep.choice import choose_trial
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import Lead, SweepProof, SweepResult
from tests.evaluation.in_memory import judge
from tests.evaluation.reports import GAIN, KNOWLEDGE, entries

RATE, RANK = "training.learning_rate", "adapter.rank"


def verdict(gain: float, lost: int, suites: Sequence[Suite] = (GAIN, KNOWLEDGE)) -> Verdict:
    """Return a verdict.

    Args:
        gain: gain on each gain task.
        lost: number of the 200 items of each retention task that are lost.
        suites: suites of the verdict.
    """
    rows = []
    for suite in suites:
        for number, task in enumerate(suite.tasks):
            if suite.role == "gain":
                base = [30.0 + n % 3 for n in range(40)]
                after = [one + gain + (n % 5 - 2) / 2 + number for n, one in enumerate(base)]
            else:
                base = [1.0] * 200
                after = [0.0] * lost + [1.0] * (200 - lost)
            rows += entries(suite, base, after, task=task.name)
    return judge(rows, suites)


def trial(number: int, values: dict[str, str], half_a: Verdict | None) -> Trial:
    """Return a trial: complete with a verdict, else pruned."""
    return Trial(
        number=number,
        values=values,
        is_default=number == 0,
        status="complete" if half_a else "pruned",
        reason="" if half_a else "the validation loss is above that of the other trials",
        seconds=90.0 + number,
        runs=(f"trials/{number:04}/seed-1",),
        validation={0: 2.5, 1: 2.25 - number / 100},
        half_a=half_a,
    )


def sweep_result(
    trials: Sequence[Trial], half_b: Verdict | None = None, leads: tuple[Lead, ...] = ()
) -> SweepResult:
    """Return the result of a sweep, with a proof of its winner if there is one."""
    choice = choose_trial(trials)
    winner = next((one for one in trials if one.number == choice.chosen), None)
    proof = None
    if winner is not None:
        half_b = half_b or verdict(2.0, 0)
        too_good = {"a-gain/captions": 0.4321}
        proof = SweepProof(winner.runs[winner.best_seed], half_b, too_good, leads)
    return SweepResult(
        name="quickstart",
        directory=Path("sweeps/quick start"),
        trials=tuple(trials),
        choice=choice,
        proof=proof,
        items={"a-gain/captions": (1234, 1235), "a-retention/knowledge": (200, 201)},
        facts={"Sampler": "tpe"},
        defaults={RATE: "0.0003", RANK: "16"},
    )


def lead(name: str = "a-gain/captions", delta: float = 1.25) -> Lead:
    """Return a significant lead on a gain task."""
    interval = verdict(delta, 0).suites[0].tasks[0].interval
    limits = replace(interval, delta=delta, low=delta - 0.5, high=delta + 0.5)
    return Lead(name, "gain", "chrF", 32.0, 32.0 + delta, limits, 0.004, "PASS")


def unbounded(of: Verdict) -> Verdict:
    """Return a verdict whose intervals have no limits."""
    suites = [
        replace(
            suite,
            tasks=tuple(
                replace(task, interval=replace(task.interval, low=-math.inf, high=math.inf))
                for task in suite.tasks
            ),
        )
        for suite in of.suites
    ]
    return replace(of, suites=tuple(suites))


def realistic() -> SweepResult:
    """Return a sweep of 12 trials over two fields, some of them pruned."""
    draws = np.random.default_rng(4)
    trials = [trial(0, {}, verdict(1.5, 2))]
    for number in range(1, 12):
        rate = float(f"{10 ** draws.uniform(-5, -2.7):.4g}")
        values = {RATE: f"{rate:.3e}", RANK: str(draws.choice([8, 16, 32, 64]))}
        gain = 3.2 - 1.2 * abs(math.log10(rate) + 3.4) + draws.normal(0, 0.2)
        lost = int(max(0, 3 + 5 * (math.log10(rate) + 3.8)))
        half_a = None if number in (5, 8, 10) else verdict(gain, lost)
        trials.append(trial(number, values, half_a))
    trials[8] = replace(trials[8], status="refused", reason="adapter.rank: too large", runs=())
    return sweep_result(trials, verdict(2.4, 1), (lead(),))
