"""Figures of a recipe that is trained, judged, and reloaded by plain transformers and PEFT."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_kit.backbone.files import resolve
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.pipeline import evaluate, train
from lora_kit.pipeline.training import Trained
from lora_kit.recipe.recipe import Recipe

# Largest difference between outputs of the run and those of plain transformers.
Reloading = Callable[[Trained, Recipe], float]


def judged(recipe: Recipe, directory: Path, reloading: Reloading) -> dict[str, Any]:
    """Return the figures of a recipe with one task, computed unless they are there."""
    path = directory / "figures.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    trained = train(recipe, directory, resume=True)
    evaluate(trained.session, stopping="none")
    (task,) = read_verdict(directory / "evaluation").verdict.suites[0].tasks
    arms: dict[str, Any] = {
        "adapter": {"score": round(task.adapter, 4)},
        "base": {"score": round(task.base, 4), "adapter_over": _interval(task.interval)},
    }
    for one in task.baselines:
        arms[one.arm] = {"score": round(one.mean, 4), "adapter_over": _interval(one.interval)}
    found = {
        "unit": task.unit,
        "items": task.interval.items,
        "modules": task.interval.clusters,
        "arms": arms,
        "measures": {
            one.name: {
                "base": round(one.base, 4),
                "adapter": round(one.adapter, 4),
                "difference": _interval(one.interval),
            }
            for one in task.measures
        },
        "seconds": round(trained.result.seconds, 1),
        "reloaded": reloading(trained, recipe),
    }
    path.write_text(json.dumps(found))
    return found


def _interval(interval: Any) -> list[float]:
    return [round(value, 4) for value in (interval.delta, interval.low, interval.high)]


def plain_outputs(
    script: str, recipe: Recipe, adapter: Path, given: Sequence[Any], *arguments: str
) -> list[list[float]]:
    """Return what a script prints that knows neither the run nor this package.

    Args:
        script: Python source; its arguments are the backbone, the adapter and those given here.
        recipe: recipe with the backbone.
        adapter: adapter directory.
        given: texts on the script's standard input.
        arguments: further arguments.
    """
    command = [sys.executable, "-c", script, str(resolve(recipe.backbone).directory)]
    told = subprocess.run(
        [*command, str(adapter), *arguments],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    outputs: list[list[float]] = json.loads(told.splitlines()[-1])
    return outputs


def show(name: str, found: dict[str, Any]) -> None:
    """Print the figures of a recipe."""
    print(f"\n{name}: {found['unit']}, {found['items']} items of {found['modules']} modules")
    for arm, one in found["arms"].items():
        over = one.get("adapter_over")
        shown = "" if over is None else f"  adapter over it {_shown(over)}"
        print(f"{arm:10}{one['score']:8.3f}{shown}")
    for measure, one in found["measures"].items():
        scores = f"{one['base']:8.3f}{one['adapter']:8.3f}"
        print(f"{measure:32} base, adapter {scores}  {_shown(one['difference'])}")
    print(f"training {found['seconds']} s")
    print(f"largest difference of plain transformers {found['reloaded']:.1e}")


def _shown(interval: Sequence[float]) -> str:
    return f"{interval[0]:+.3f} ({interval[1]:+.3f} to {interval[2]:+.3f})"
