"""Ways to adapt and to keep, on the plane of gain against forgetting.

    python -m tests.benchmarks.retention [--quick] [--output DIR] [--backbones a,b] [--tasks a,b]
                                         [--ways "a;b"] [--seeds N] [--plot FILE] [--only-figures]

SmolLM2-135M and Gemma 3 270M in bfloat16 (in float32 for ways that need it), LoRA r16 unless the
way says otherwise, 96 rows, one epoch of 24 steps. Tasks: one-line docstrings
(`stdlib-docstrings`), and of BIG-bench sentences from attributes (gem__e2e_nlg) and questions from
statements (question_formation). Each way has the learning rate of its own with the largest gain on
half A of the held-out items, for the first seed, found in steps of two; a way that scales plain
LoRA afterwards has plain LoRA's. Everything told is measured on half B, which no rate was picked
by, over all seeds.

Gain: by how much the loss of held-out answers falls, nats per token. Forgetting: by how much losses
rise on what was not trained, the mean of five tasks of `core-retention`: prose (nats per token),
knowledge, reasoning, language and arithmetic (nats of the right choice). Instructions are told
apart: by how much the share that is obeyed falls. Shares are of plain LoRA's; a share of forgetting
is told where plain LoRA is shown to forget. All intervals: 95%, over seeds and items together.

What is there already under `--output` is not done again, so that it can be broken off; processes
may share the folder if they have backbones or tasks of their own. `--quick`: plain LoRA on
docstrings, one rate and one seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.runtime.errors import LoraKitError, TrainingInterruptedError
from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.plane import Task, tasks_of
from tests.benchmarks.retention.backbones import BACKBONES, reference
from tests.benchmarks.retention.cells import Measured, Place, read_measured
from tests.benchmarks.retention.figures import drift_and_forgetting, figures_of
from tests.benchmarks.retention.plot import plot
from tests.benchmarks.retention.ways import PLAIN, WAYS

# From way to figures, by backbone and task.
Plane = dict[str, dict[str, dict[str, Any]]]


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one training")
    parser.add_argument("--output", type=Path, default=Path("runs/retention"))
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--tasks", default="docstrings,e2e,questions")
    parser.add_argument("--ways", default=";".join(WAYS), help="separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only-figures", action="store_true", help="of what is there already")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tasks = [t for t in tasks_of(arguments.output) if t.name in arguments.tasks.split(",")]
    if arguments.quick:
        _quick(arguments.output, tasks[0])
        return
    backbones, ways = arguments.backbones.split(","), arguments.ways.split(";")
    if not arguments.only_figures:
        _fill(arguments.output, backbones, tasks, ways, arguments.seeds)
    plane: Plane = {}
    measured: dict[str, list[Measured]] = {}
    for backbone in backbones:
        for task in tasks:
            name = f"{backbone}, {task.name}"
            folder = arguments.output / backbone / task.name
            measured[name] = read_measured(folder, ways, arguments.seeds)
            plane[name] = figures_of(measured[name])
            _print(name, plane[name])
    if arguments.plot:
        plot(plane, arguments.plot)
    drift = drift_and_forgetting(measured)
    print(f"\ndrift and forgetting, rank correlation over adapters: {drift}")
    print(json.dumps({"plane": plane, "drift": drift} | _machine()))


def _machine() -> dict[str, Any]:
    return {"machine": machine(), "versions": versions()}


def _quick(output: Path, task: Task) -> None:
    """Train plain LoRA once, and print gain and forgetting without intervals."""
    name = next(iter(BACKBONES))
    folder, way = output / name / task.name, WAYS[PLAIN]
    found = Place.of(folder, reference(name, output), task, way.dtype).once(PLAIN)
    print(found)
    print(json.dumps(found | _machine()))


def _fill(
    output: Path, backbones: Sequence[str], tasks: Sequence[Task], ways: Sequence[str], seeds: int
) -> None:
    """Train and measure what is not there yet, way by way."""
    places: dict[tuple[str, str, str], Place] = {}
    for way in ways:
        for backbone in backbones:
            for task in tasks:
                folder = output / backbone / task.name
                if read_measured(folder, [way], seeds):
                    continue
                dtype = WAYS[way].dtype
                key = backbone, task.name, dtype
                if key not in places:
                    model = reference(backbone, output)
                    places[key] = Place.of(folder, model, task, dtype)
                try:
                    places[key].measure(way, seeds)
                except TrainingInterruptedError:
                    raise
                except LoraKitError as error:
                    print(f"{folder}, {way}: {error}", flush=True)
                    places[key].items.shared.forget()


def _print(name: str, figures: dict[str, dict[str, Any]]) -> None:
    print(f"\n{name}: nats, shares of plain LoRA's (95% intervals)")
    columns = ("gain", "gain_share", "forgetting", "forgetting_share")
    print(f"{'way':18}{'rate':>8}" + "".join(f"{one:>26}" for one in columns) + "  seconds")
    for way, one in figures.items():
        cells = "".join(_interval(one[column]).rjust(26) for column in columns)
        print(f"{way:18}{one['rate']:>8.2g}{cells}{one['seconds']:>9.0f}")


def _interval(value: list[float] | None) -> str:
    if value is None:
        return "-"
    mean, low, high = value
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
