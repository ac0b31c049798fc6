"""Gain of DPO, a reward model and GRPO on held-out items, adapter against base.

    python -m tests.benchmarks.preferences [--output DIR] [--objectives dpo,reward] [--quick]

SmolLM2-135M; the bundled recipes `dpo`, `reward` and `grpo`, each a run directory under `--output`;
what is trained there already is not trained again, so that it can be broken off. DPO: share of
held-out pairs in which the chosen answer is the likelier one, and -log sigmoid of the difference of
their log-likelihoods (nats). Reward: the same of the rewards; the base is what the length of an
answer tells. GRPO: the reward of greedy answers to held-out prompts. Differences with the harness's
own paired intervals (95%, by clusters).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lora_kit.evaluation.diagnostics import SecondaryMetric
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.pipeline import evaluate, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.machine import machine, versions

SUITES = {"dpo": "docstring-pairs", "reward": "docstring-pairs", "grpo": "sums"}
QUICK = ("training.epochs=0.2",)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--objectives", default=",".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="a fifth of the training")
    arguments = parser.parse_args()
    figures = {}
    for objective in arguments.objectives.split(","):
        run = arguments.output / (f"{objective}-quick" if arguments.quick else objective)
        figures[objective] = _measured(objective, run, QUICK if arguments.quick else ())
        _print(objective, figures[objective])
    print(json.dumps(figures | {"machine": machine(), "versions": versions()}))


def _measured(objective: str, root: Path, changes: tuple[str, ...]) -> dict[str, Any]:
    suites = f"evaluation.suites=[{SUITES[objective]}]"
    recipe = Recipe.load(objective, [*changes, suites])
    trained = train(recipe, root, resume=root.is_dir())
    verdict = evaluate(trained.session, stopping="none").verdict
    tasks = {}
    for task in (task for suite in verdict.suites for task in suite.tasks):
        tasks[task.task] = _moved(task) | {"unit": task.unit, "decision": task.decision}
        tasks |= {
            f"{task.task}, loss": _moved(measure) | {"unit": "nats", "decision": ""}
            for measure in task.measures
            if measure.name == "loss"
        }
    return {
        "seconds": round(trained.result.seconds),
        "steps": trained.result.steps,
        "tokens_per_second": round(trained.result.tokens_per_second),
        "tasks": tasks,
    }


def _moved(measured: TaskVerdict | SecondaryMetric) -> dict[str, Any]:
    """Means of both arms, and the difference with its interval, positive where it is better."""
    interval = measured.interval
    figures = {
        "base": measured.base,
        "adapter": measured.adapter,
        "gain": interval.delta,
        "low": interval.low,
        "high": interval.high,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def _print(objective: str, found: dict[str, Any]) -> None:
    print(f"{objective}: {found['steps']} steps in {found['seconds']} s")
    for name, task in found["tasks"].items():
        print(
            f"  {name:24}{task['base']:>10.3f} -> {task['adapter']:.3f} {task['unit']}, gain "
            f"{task['gain']:+.3f} ({task['low']:+.3f} to {task['high']:+.3f}) {task['decision']}"
        )


if __name__ == "__main__":
    main()
