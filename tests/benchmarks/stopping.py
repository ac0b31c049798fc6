"""Items and seconds until a task is decided, beside those of a fixed evaluation.

    python -m tests.benchmarks.stopping [--quick] [--run DIR] [--only PART] [--case NAME]

The adapter of the quickstart on its own suites, the same with B = 0 and scaled by 8 on
`core-retention`, and the first one on three tasks of BIG-bench: each evaluated look by look and
with all items, without results of an earlier evaluation. Verdicts are compared task by task. Then,
by simulation, how often a loss of exactly the margin passes, and how much power the looks cost.

Training takes some minutes; `--run` takes a finished quickstart instead. `--quick`: a fifth of the
items of BIG-bench, no quickstart suites, and few draws.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from safetensors.torch import load_file, save_file

from lora_kit.adapter.saved import ADAPTER_WEIGHTS
from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.stopping import LookPlan
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.pipeline import evaluate, train
from lora_kit.recipe.recipe import Recipe
from tests.bigbench import bigbench_rows
from tests.statistics.sequential import (
    NOISES,
    Rates,
    flips,
    passed_margin,
    shifted,
    simulate,
)

BIGBENCH = ("intent_recognition", "social_iqa", "goal_step_wikihow__step_inference")
BIGBENCH_ITEMS = 400
MARGIN = 0.05
DAMAGED = "damaged (x 8)"
Stopping = Literal["none", "sequential"]


@dataclass(frozen=True)
class Case:
    """Adapter on suites.

    Attributes:
        name: name in the table.
        target: run or adapter.
        suites: suites by name or path; of the recipe, if empty.
    """

    name: str
    target: Path
    suites: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Verdicts of one evaluation by suite and task, its looks, and its time."""

    tasks: dict[str, TaskVerdict]
    plan: LookPlan
    seconds: float

    def share_until_failed(self) -> float:
        """Return the share of all items that was asked when the first task failed.

        All tasks are asked in step, and one that fails decides the verdict.
        """
        failed = [t.looks.ended_at for t in self.tasks.values() if t.decision == "FAIL"]
        first = min(failed, default=max(t.looks.planned for t in self.tasks.values()))
        asked = items = 0
        for name, task in self.tasks.items():
            by_look = self.plan.tasks[name].items
            asked += by_look[min(first, task.looks.ended_at) - 1]
            items += task.looks.items
        return asked / items


def main() -> None:
    """Measure, simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer suites, items and draws")
    parser.add_argument("--run", type=Path, help="a finished quickstart instead of a new one")
    parser.add_argument("--only", choices=("items", "simulation"), help="one of the two parts")
    parser.add_argument("--case", action="append", help="a case of the table; may be repeated")
    parser.add_argument("--draws", type=int, help="draws of each simulation; default 1000")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    if arguments.only != "simulation":
        with tempfile.TemporaryDirectory() as folder:
            cases = arguments.case or ()
            figures |= _measure(Path(folder), arguments.run, arguments.quick, cases)
    if arguments.only != "items":
        figures |= _simulate(arguments.draws or (200 if arguments.quick else 1000), arguments.quick)
    print(json.dumps(figures))


def _measure(folder: Path, run: Path | None, quick: bool, cases: Sequence[str]) -> dict[str, float]:
    if run is None:
        run = train(Recipe.load("quickstart"), folder / "quickstart").session.run.root
    shares, until_failed, disagreeing = [], 1.0, 0
    print(f"{'adapter on suites':<32} {'task':<40} {'items':>12}  look  with looks / all items")
    for case in _cases(folder, run, quick):
        if cases and case.name not in cases:
            continue
        with_looks, fixed = (
            _evaluate(case, folder / f"{case.name}-{stopping}", stopping)
            for stopping in ("sequential", "none")
        )
        for name, task in with_looks.tasks.items():
            looks, whole = task.looks, fixed.tasks[name]
            share = looks.asked / looks.items
            shares.append(share)
            disagreeing += task.decision != whole.decision
            print(
                f"{case.name:<32} {name:<40} {looks.asked:>4} of {looks.items:>4}  "
                f"{looks.ended_at}/{looks.planned}   {task.decision} / {whole.decision}"
            )
        if case.name == DAMAGED:
            until_failed = with_looks.share_until_failed()
        asked = sum(task.looks.asked for task in with_looks.tasks.values())
        items = sum(task.looks.items for task in with_looks.tasks.values())
        ratio = with_looks.seconds / fixed.seconds
        seconds = f"{with_looks.seconds:.0f} s of {fixed.seconds:.0f} s ({ratio:.2f})"
        print(f"{case.name}: {asked:,} of {items:,} items ({asked / items:.2f}), {seconds}")
    return {
        "items_share_median": round(statistics.median(shares), 3),
        "damaged_items_share": round(until_failed, 3),
        "verdicts_differ": disagreeing,
    }


def _cases(folder: Path, run: Path, quick: bool) -> Iterator[Case]:
    if not quick:
        yield Case("quickstart", run, ())
    for name, scale in (("nothing learned (B = 0)", 0.0), (DAMAGED, 8.0)):
        yield Case(name, _scaled(run / "adapter", folder / name, scale), ("core-retention",))
    yield Case("quickstart on BIG-bench", run / "adapter", (_bigbench(folder, quick),))


def _scaled(adapter: Path, to: Path, scale: float) -> Path:
    """Write an adapter whose change of the weights is multiplied by a factor."""
    to.mkdir()
    for path in adapter.iterdir():
        if path.is_file() and path.name != ADAPTER_WEIGHTS:
            (to / path.name).write_bytes(path.read_bytes())
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    scaled = {n: w * scale if "lora_B" in n else w for n, w in weights.items()}
    save_file(scaled, to / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return to


def _bigbench(folder: Path, quick: bool) -> str:
    tasks = []
    for name in BIGBENCH:
        source = folder / f"{name}.jsonl"
        rows = bigbench_rows(name)
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tasks.append(
            {
                "name": name,
                "kind": "multiple_choice",
                "source": str(source),
                "limit": BIGBENCH_ITEMS // 5 if quick else BIGBENCH_ITEMS,
                "margin": MARGIN,
                "rationale": "With 400 items and one flip in ten, 5 points can be decided.",
            }
        )
    suite = folder / "bigbench.yaml"
    suite.write_text(yaml.safe_dump({"name": "bigbench", "role": "retention", "tasks": tasks}))
    return str(suite)


def _evaluate(case: Case, output: Path, stopping: Stopping) -> Outcome:
    started = time.monotonic()
    done = evaluate(
        case.target, list(case.suites) or None, output=output, no_cache=True, stopping=stopping
    )
    seconds = time.monotonic() - started
    tasks = {f"{suite.suite}/{task.task}": task for suite, task in done.verdict.tasks}
    return Outcome(tasks, LookPlan.from_dict(Ledger(output / LEDGER).plan), seconds)


@dataclass(frozen=True)
class Simulated:
    """Draws with a loss of exactly the margin, and without a loss."""

    name: str
    at_margin: Rates
    unchanged: Rates


def _simulate(draws: int, quick: bool) -> dict[str, float]:
    print(
        "\ndata, items, looks: passes at the margin; without a loss (fixed test); coverage; asked"
    )
    false_pass = loss = 0.0
    for one in _simulations(draws, quick):
        at, unchanged = one.at_margin, one.unchanged
        print(
            f"{one.name:<44} {at.passed:.3f}; {unchanged.passed:.3f} ({unchanged.fixed:.3f}); "
            f"{min(at.covered, unchanged.covered):.3f}; {at.asked:.2f} and {unchanged.asked:.2f}",
            flush=True,
        )
        false_pass = max(false_pass, at.passed)
        loss = max(loss, unchanged.fixed - unchanged.passed)
    return {
        "false_pass_max": round(false_pass, 4),
        "pass_power_loss_max": round(loss, 4),
        "monte_carlo_error": round(math.sqrt(0.05 * 0.95 / draws), 4),
    }


def _simulations(draws: int, quick: bool) -> Iterator[Simulated]:
    for items in (100, 180) if quick else (60, 100, 180, 400, 1000):
        for looks in (5,) if quick else (1, 3, 5, 10):
            # The margin that an adapter without a loss passes in four of five cases, about.
            for rate in (0.1,) if quick else (0.02, 0.1, 0.3):
                margin = round(max(2.5 * math.sqrt(rate / items), 0.02), 3)
                at = flips(max(rate, margin), margin)
                yield Simulated(
                    f"flips {rate:.0%}, {items}, {looks}",
                    simulate(at, -margin, margin, items, looks, draws, binary=True),
                    simulate(flips(rate, 0), 0, margin, items, looks, draws, binary=True),
                )
            yield from _other_scores(items, looks, draws)


def _other_scores(items: int, looks: int, draws: int) -> Iterator[Simulated]:
    for name, (noise, size) in NOISES.items():
        margin = passed_margin(items, size)
        at = shifted(noise, margin)
        yield Simulated(
            f"{name}, {items}, {looks}",
            simulate(at, -margin, margin, items, looks, draws, cluster_size=size),
            simulate(noise, 0, margin, items, looks, draws, cluster_size=size),
        )


if __name__ == "__main__":
    main()
