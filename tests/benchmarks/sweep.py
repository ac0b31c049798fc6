"""Claims of sweeps in which no recipe is better than another, and the time of a real one.

    python -m tests.benchmarks.sweep [--quick] [--real DIR] [--draws N]

Simulated sweeps: all trials have the same true scores, on items of which some are easy and some are
hard for all of them. The winner is picked on half A, and compared with the recipe as it is on half
B; `false_better` is the share of sweeps in which that is significant in favour of the winner, whose
level is 2.5%. Beside it, the same comparison on half A, on which the winner was picked.

`--real`: sweeps the quickstart's learning rate and rank in 12 trials into a folder, and prints the
minutes and by how much the gain on half A was too good. A folder of a finished sweep is used again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.suite import Suite
from lora_kit.pipeline.sweep import SweepRequest, sweep
from lora_kit.pipeline.sweep_proof import lead
from lora_kit.selection.sweep.choice import choose_trial
from lora_kit.selection.sweep.record import Trial
from tests.evaluation.in_memory import judge

TRIALS = 12
ITEMS = 100
OVER = {"training.learning_rate": "1e-4..2e-3:log", "adapter.rank": "8,16,32"}
GAIN = Suite.model_validate(
    {
        "name": "gain",
        "role": "gain",
        "tasks": [{"name": "exact", "kind": "instructions", "source": "x"}],
    }
)
KEEP = Suite.model_validate(
    {
        "name": "keep",
        "role": "retention",
        "tasks": [{"name": "quiz", "kind": "instructions", "source": "x", "margin": 0.2}],
    }
)
# From item to entry, by half, arm (a number for a trial) and suite.
Half = dict[str, Entry]


def main() -> None:
    """Simulate, sweep and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="20 simulated sweeps, no real one")
    parser.add_argument("--draws", type=int, help="simulated sweeps; default 400")
    parser.add_argument("--real", type=Path, help="folder of a real sweep of the quickstart")
    arguments = parser.parse_args()
    figures: dict[str, Any] = _simulated(arguments.draws or (20 if arguments.quick else 400))
    if arguments.real and not arguments.quick:
        figures |= _real(arguments.real)
    print(json.dumps(figures))


def _simulated(draws: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    on_a = on_b = chosen = 0
    too_good = []
    for _ in range(draws):
        halves = [_half(random, half) for half in ("a", "b")]
        trials = [_trial(number, halves[0]) for number in range(TRIALS)]
        winner = choose_trial(trials).chosen
        if winner in (None, 0):
            continue
        chosen += 1
        leads = [
            lead(GAIN, GAIN.tasks[0], half["gain"][0], half["gain"][winner]) for half in halves
        ]
        on_a += leads[0].decision == "PASS"
        on_b += leads[1].decision == "PASS"
        gains = [_gain(half, winner) for half in halves]
        too_good.append(gains[0] - gains[1])
    print(f"{draws} simulated sweeps of {TRIALS} trials without any true difference")
    print(f"  another trial than the recipe as it is wins: {chosen / draws:.1%}")
    print(f"  called better on half A, which picked it:    {on_a / draws:.1%}")
    print(f"  called better on half B, which did not:      {on_b / draws:.1%}")
    print(f"  gain on half A minus gain on half B:         {np.mean(too_good):+.3f}")
    return {
        "sweeps": draws,
        "false_better": on_b / draws,
        "false_better_on_half_a": on_a / draws,
        "half_a_minus_half_b": float(np.mean(too_good)),
    }


def _half(random: np.random.Generator, half: str) -> dict[str, list[Half]]:
    """Return entries of the base and all trials on one half, by suite; the base comes last."""
    found = {}
    for suite, gained in (("gain", 0.2), ("keep", 0.0)):
        ability = random.beta(1, 1, ITEMS)
        probability = np.clip(ability + gained, 0, 1)
        rows = [random.random(ITEMS) < probability for _ in range(TRIALS)]
        rows.append(random.random(ITEMS) < ability)
        found[suite] = [
            {f"{half}{n}": _entry(suite, f"{half}{n}", float(right)) for n, right in enumerate(row)}
            for row in rows
        ]
    return found


def _entry(suite: str, item: str, score: float) -> Entry:
    task = {"gain": "exact", "keep": "quiz"}[suite]
    return Entry("adapter", suite, task, item, item, score, "", "", "", 0, 0.0)


def _trial(number: int, half: dict[str, list[Half]]) -> Trial:
    entries = []
    for rows in half.values():
        entries += [_as("base", one) for one in rows[-1].values()]
        entries += list(rows[number].values())
    return Trial(
        number, {"x": str(number)}, number == 0, "complete", "", 1.0, half_a=judge(entries, SUITES)
    )


SUITES = [GAIN, KEEP]


def _as(arm: str, entry: Entry) -> Entry:
    return Entry(arm, entry.suite, entry.task, entry.item, entry.cluster, entry.score, *_EMPTY)


_EMPTY = ("", "", "", 0, 0.0)


def _gain(half: dict[str, list[Half]], winner: int) -> float:
    means = [
        float(np.mean([one.score or 0.0 for one in half["gain"][n].values()])) for n in (winner, -1)
    ]
    return means[0] - means[1]


def _real(folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    request = SweepRequest("quickstart", (), OVER, (f"sweep.trials={TRIALS}",), folder)
    result = sweep(request)
    assert result is not None
    seconds = sum(one.seconds for one in result.trials)
    print(f"{'trial':<34} {'status':<9} {'minutes':>7}  gain on half A")
    for one in result.trials:
        gain = ""
        if one.half_a is not None:
            task = one.half_a.suites[0].tasks[0]
            interval = task.interval
            gain = f"{interval.delta:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
        print(f"{one.number:>2} {one.name:<31} {one.status:<9} {one.seconds / 60:>7.1f}  {gain}")
    print(
        f"trials {seconds / 60:.1f} min; this command {(time.monotonic() - started) / 60:.1f} min"
    )
    print(result.choice.reason)
    proof = result.proof
    return {
        "trial_minutes": seconds / 60,
        "decision": result.decision,
        "real_half_a_minus_half_b": None if proof is None else proof.too_good,
        "leads": None
        if proof is None
        else {
            one.name: [one.interval.delta, one.interval.low, one.interval.high]
            for one in proof.leads
        },
    }


if __name__ == "__main__":
    main()
