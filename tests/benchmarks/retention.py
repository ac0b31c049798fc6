"""Ways to adapt and to keep, on the plane of gain against forgetting.

    python -m tests.benchmarks.retention [--quick] [--output DIR] [--ways a,b] [--seeds N]
                                         [--tasks a,b] [--plot FILE]

SmolLM2-135M in float32, one training a way, task and seed, each a run directory under `--output`;
what is there already is not trained again, so that it can be broken off. Tasks: one-line docstrings
(`stdlib-docstrings`), and sentences from attributes (gem__e2e_nlg of BIG-bench, told apart by
input). Gain: by how much the loss of held-out answers falls, nats per token. Forgetting: by how
much losses rise on what was not trained, the mean of three tasks: prose of the language reference
(nats per token), knowledge and arithmetic (nats of the right choice). The anchor and the replay are
of the reference's training half, so prose is near to what they hold on to; knowledge and arithmetic
are not. `--quick`: plain LoRA on docstrings, as it is and at 0.75, one seed.

Intervals: 95%, by resampling seeds and clusters of items both (10,000 times).
`less forgetting`: that of plain LoRA minus that of the way, on the same seeds and items.
`gain within 10%`: whether the interval of its gain minus nine tenths of plain LoRA's is above 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.pipeline import evaluate
from lora_kit.rescaling.scale import AdapterScale, scaled_adapter
from lora_kit.runs.session import open_run
from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.plane import (
    KEPT,
    Fall,
    Task,
    falls_of,
    fill,
    interval,
    is_done,
    kept_of,
    recipe_of,
    suites_of,
    tasks_of,
    turned,
)

PLAIN = "lora"
REFERENCE = {"source": "python-reference", "split": "train"}
ANCHOR = {**REFERENCE, "rows": 2, "length": 128}
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "anchor 1": {"retention": {"kl": {**ANCHOR, "weight": 1.0}}},
    "replay 5%": {"data": {"replay": {**REFERENCE, "fraction": 0.05}}},
    "lora, half the rate": {"training": {"learning_rate": 5e-4}},
    "replay self 5%": {"data": {"replay": {"source": "self", "fraction": 0.05}}},
    "own words": {"retention": {"self_distillation": {"similarity": 40.0}}},
    "mask 1000": {"retention": {"token_masking": {"max_perplexity": 1000.0}}},
    "full": {"adapter": {"method": "full"}, "training": {"learning_rate": 5e-5}},
    # The output head is one with the embedding and is not trained apart; this is before it.
    "last norm": {
        "adapter": {"method": "ln_tuning", "target_modules": ["norm"]},
        "training": {"learning_rate": 1e-2},
    },
    "last-2": {"adapter": {"method": "last-2"}, "training": {"learning_rate": 2e-4}},
    "ewc 10": {"retention": {"ewc": {**REFERENCE, "weight": 10.0}}},
    "budget 0.03": {"retention": {"early_stopping": {**REFERENCE, "steps": 4, "margin": 0.03}}},
    "lora, twice the rate": {"training": {"learning_rate": 2e-3}},
    "anchor 10": {"retention": {"kl": {**ANCHOR, "weight": 10.0}}},
    "mask 10": {"retention": {"token_masking": {"max_perplexity": 10.0}}},
    "non-target kl 1": {"retention": {"non_target_kl": {"weight": 1.0}}},
    "non-target kl 10": {"retention": {"non_target_kl": {"weight": 10.0}}},
    "entropy weights": {"retention": {"entropy_weighting": {}}},
    "dora": {"adapter": {"options": {"use_dora": True}}},
    "ia3": {"adapter": {"method": "ia3"}, "training": {"learning_rate": 1e-2}},
}
MARKERS = "os^vDPX*<>hp"
# Plain LoRA turned down afterwards, as `rescale` does it, to scales that nothing was picked by.
DIALLED = {"lora at 0.75": 0.75, "lora at 0.5": 0.5}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one training")
    parser.add_argument("--output", type=Path, default=Path("runs/retention"))
    parser.add_argument("--ways", help="some of them, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", help="some of them, separated by commas")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.ways, arguments.tasks, arguments.seeds = "lora,lora at 0.75", "docstrings", 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    ways = arguments.ways.split(",") if arguments.ways else [*WAYS, *DIALLED]
    tasks = list(tasks_of(arguments.output))
    if arguments.tasks:
        tasks = [task for task in tasks if task.name in arguments.tasks.split(",")]
    figures: dict[str, dict[str, Any]] = {}
    for task in tasks:
        suites = suites_of(arguments.output, task)
        for seed in range(arguments.seeds):
            for way in ways:
                _run(arguments.output, task, way, seed, suites)
        figures[task.name] = _figures(arguments.output, task, ways, arguments.seeds)
        _print(task, figures[task.name])
    if arguments.plot:
        _plot(figures, arguments.plot)
    print(json.dumps({"figures": figures, "machine": machine(), "versions": versions()}))


def directory_of(output: Path, task: Task, way: str, seed: int) -> Path:
    """Where a cell lies."""
    return output / task.name / way.replace(" ", "-").replace(",", "") / f"seed-{seed}"


def _run(output: Path, task: Task, way: str, seed: int, suites: Sequence[str]) -> None:
    directory, name = directory_of(output, task, way, seed), f"{task.name}, {way}, seed {seed}"
    if way in DIALLED:
        _dial(directory_of(output, task, PLAIN, seed), directory, DIALLED[way], name)
        return
    fill(
        directory, recipe_of(task, seed, WAYS[way], {"evaluation": {"suites": list(suites)}}), name
    )


def _dial(plain: Path, directory: Path, scale: float, name: str) -> None:
    if is_done(directory) or not is_done(plain):
        return
    print(name, flush=True)
    session = open_run(plain)
    with scaled_adapter(session.model, AdapterScale.uniform(scale)):
        evaluate(session, output=directory / "evaluation", stopping="none")
    (directory / "run.json").write_text((plain / "run.json").read_text())


def _figures(output: Path, task: Task, ways: Sequence[str], seeds: int) -> dict[str, Any]:
    found: dict[str, dict[str, Fall]] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    for way in ways:
        places = [directory_of(output, task, way, seed) for seed in range(seeds)]
        done = [p for p in places if is_done(p)]
        if len(done) == seeds:
            found[way] = falls_of(done)
            records[way] = [json.loads((place / "run.json").read_text()) for place in done]
    figures = {}
    for way, of_way in found.items():
        plain = found.get(PLAIN, of_way)
        kept = kept_of(of_way)
        spared = [
            Fall(of_way[name].values - plain[name].values, of_way[name].clusters) for name in KEPT
        ]
        trainings = [record["training"] for record in records[way]]
        figures[way] = {
            "gain": interval([of_way["gain"]]),
            "forgetting": interval(kept),
            "less_forgetting": interval(spared),
            # Above 0 for sure: the gain is within 10% of plain LoRA's.
            "gain_over_90_percent": interval(
                [
                    Fall(
                        of_way["gain"].values - 0.9 * plain["gain"].values,
                        of_way["gain"].clusters,
                    )
                ]
            ),
            "gain_over_plain": round(
                float(of_way["gain"].values.mean() / plain["gain"].values.mean()), 3
            ),
            **{f"forgetting_{name}": interval([turned(of_way[name])]) for name in KEPT},
            "parameters": records[way][0]["coverage"]["trainable_parameters"],
            "tokens_per_second": round(float(np.mean([t["tokens_per_second"] for t in trainings]))),
            "peak_memory_gb": round(max(t["peak_memory"] for t in trainings) / 1e9, 2),
        }
    return figures


def _print(task: Task, figures: dict[str, Any]) -> None:
    print(f"\n{task.name}: nats (95% interval)")
    columns = ("gain", "forgetting", "less_forgetting")
    print(
        f"{'way':28}" + "".join(f"{name:>28}" for name in columns) + "  gain/plain  token/s   GB"
        "  gain within 10%"
    )
    for way, one in figures.items():
        cells = "".join(
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})".rjust(28)
            for mean, low, high in (one[name] for name in columns)
        )
        print(
            f"{way:28}{cells}{one['gain_over_plain']:>12.2f}{one['tokens_per_second']:>9}"
            f"{one['peak_memory_gb']:>5.1f}"
            f"{'shown' if one['gain_over_90_percent'][1] > 0 else 'not shown':>17}"
        )


def _plot(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Gain upwards, forgetting to the right: what is good is at the top left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(figures), 6), layout="constrained")
    axes = figure.subplots(1, len(figures), squeeze=False)[0]
    # The same sign for the same way in each of them.
    ways = list(dict.fromkeys(way for of_task in figures.values() for way in of_task))
    signs = {way: (MARKERS[n % len(MARKERS)], f"C{n % 10}") for n, way in enumerate(ways)}
    shown = {}
    for axis, (task, of_task) in zip(axes, figures.items(), strict=True):
        for way, one in of_task.items():
            (x, left, right), (y, low, high) = one["forgetting"], one["gain"]
            marker, color = signs[way]
            shown[way] = axis.errorbar(
                x, y, xerr=[[x - left], [right - x]], yerr=[[y - low], [high - y]], fmt=marker,
                color=color, markersize=6, linewidth=0.6, alpha=0.85,
            )  # fmt: skip
        axis.axvline(0, color="0.7", linewidth=0.8)
        axis.set(title=task, xlabel="forgetting (nats)", ylabel="gain (nats per token)")
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
