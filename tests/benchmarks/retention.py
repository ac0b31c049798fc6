"""Ways to adapt and to keep, on the plane of gain against forgetting.

    python -m tests.benchmarks.retention [--output DIR] [--bigbench DIR] [--ways a,b] [--seeds N]
                                         [--plot FILE]

SmolLM2-135M in float32, one training a way, task and seed, each a run directory under `--output`;
what is there already is not trained again, so that it can be broken off. Tasks: one-line
docstrings (`stdlib-docstrings`), and with `--bigbench` sentences from attributes
(gem__e2e_nlg of BIG-bench, told apart by input). Gain: by how much the loss of held-out answers
falls, nats per token. Forgetting: by how much losses rise on what was not trained, the mean of
three tasks: prose of the language reference (nats per token), knowledge and arithmetic (nats of the
right choice). The anchor and the replay are of the reference's training half, so prose is near to
what they hold on to; knowledge and arithmetic are not.

Intervals: 95%, by resampling seeds and clusters of items both (10,000 times).
`less forgetting`: that of plain LoRA minus that of the way, on the same seeds and items.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lora_kit.errors import LoraKitError
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.pipeline import evaluate, train
from lora_kit.recipe import Recipe
from lora_kit.run import machine, versions

Matrix = NDArray[np.float64]
PLAIN = "lora"
REFERENCE = {"source": "python-reference", "split": "train"}
ANCHOR = {**REFERENCE, "rows": 2, "length": 128}
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "lora, a fifth of the rate": {"training": {"learning_rate": 2e-4}},
    "dora": {"adapter": {"options": {"use_dora": True}}},
    "ia3": {"adapter": {"method": "ia3"}, "training": {"learning_rate": 1e-2}},
    "last-2": {"adapter": {"method": "last-2"}, "training": {"learning_rate": 2e-4}},
    "full": {"adapter": {"method": "full"}, "training": {"learning_rate": 5e-5}},
    "replay 5%": {"data": {"replay": {**REFERENCE, "fraction": 0.05}}},
    "anchor 1": {"retention": {"anchor": {**ANCHOR, "weight": 1.0}}},
    "anchor 10": {"retention": {"anchor": {**ANCHOR, "weight": 10.0}}},
    "ewc 10": {"retention": {"consolidation": {**REFERENCE, "weight": 10.0}}},
    "mask 2.5": {"retention": {"mask": {"max_perplexity": 2.5}}},
    "mask 1000": {"retention": {"mask": {"max_perplexity": 1000.0}}},
    "budget 0.05": {"retention": {"budget": {**REFERENCE, "steps": 4, "margin": 0.05}}},
}
ROWS, HELD_OUT, DRAWS = 192, 48, 10_000
COMMON = {
    "backbone": {"model": "smollm2-135m-instruct", "quantization": "none", "dtype": "float32"},
    "training": {"epochs": 2.0, "batch_size": 8, "learning_rate": 1e-3},
    "evaluation": {"arms": ["base", "adapter"]},
}
KEPT = {
    "prose": {"kind": "loss", "source": "python-reference", "limit": 40, "max_length": 160},
    "knowledge": {"kind": "multiple_choice", "source": "general-knowledge", "limit": 200},
    "arithmetic": {"kind": "multiple_choice", "source": "arithmetic", "limit": 120},
}


@dataclass(frozen=True)
class Task:
    """What is learned: rows, and the suite of held-out items by which the gain is measured."""

    name: str
    train: dict[str, Any]
    held_out: dict[str, Any]


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/retention"))
    parser.add_argument("--bigbench", type=Path)
    parser.add_argument("--ways", help="some of them, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    ways = arguments.ways.split(",") if arguments.ways else list(WAYS)
    tasks = list(_tasks(arguments.output, arguments.bigbench))
    figures: dict[str, dict[str, Any]] = {}
    for task in tasks:
        suites = _suites(arguments.output, task)
        for seed in range(arguments.seeds):
            for way in ways:
                _run(arguments.output, task, way, seed, suites)
        figures[task.name] = _figures(arguments.output, task, ways, arguments.seeds)
        _print(task, figures[task.name])
    if arguments.plot:
        _plot(figures, arguments.plot)
    print(json.dumps({"figures": figures, "machine": machine(), "versions": versions()}))


def _tasks(output: Path, bigbench: Path | None) -> Iterable[Task]:
    docstrings = {"source": "stdlib-docstrings"}
    yield Task(
        "docstrings",
        {**docstrings, "split": "train", "limit": ROWS},
        {**docstrings, "split": "test", "limit": HELD_OUT, "max_length": 320},
    )
    if bigbench is None:
        return
    items = [json.loads(line) for line in (bigbench / "gem__e2e_nlg.jsonl").open()]
    inputs = list(dict.fromkeys(item["input"] for item in items))
    tested = set(inputs[:: max(len(inputs) // HELD_OUT, 2)])
    paths = {}
    for part, is_tested in (("train", False), ("test", True)):
        paths[part] = output / f"e2e-{part}.jsonl"
        rows = [
            {"prompt": f"Write a sentence: {item['input']}", "completion": item["targets"][0]}
            for item in items
            if (item["input"] in tested) is is_tested
        ]
        paths[part].write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield Task(
        "e2e",
        {"source": str(paths["train"].absolute()), "limit": ROWS},
        {"source": str(paths["test"].absolute()), "limit": HELD_OUT},
    )


def _suites(output: Path, task: Task) -> list[str]:
    gain = {"name": "gain", "kind": "loss", **task.held_out}
    kept = [
        {"name": name, "margin": 0.05, "why": "As in core-retention.", **one}
        | ({"score": "loss"} if one["kind"] != "loss" else {})
        for name, one in KEPT.items()
    ]
    documents = [
        {"name": f"{task.name}-gain", "role": "gain", "tasks": [gain]},
        {"name": "kept", "role": "retention", "tasks": kept},
    ]
    paths = [output / f"{document['name']}.yaml" for document in documents]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(yaml.safe_dump(document))
    return [str(path.absolute()) for path in paths]


def _merged(one: Any, other: Any) -> Any:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return one | {name: _merged(one.get(name), value) for name, value in other.items()}


def _directory(output: Path, task: Task, way: str, seed: int) -> Path:
    return output / task.name / way.replace(" ", "-").replace(",", "") / f"seed-{seed}"


def _run(output: Path, task: Task, way: str, seed: int, suites: Sequence[str]) -> None:
    """Train and evaluate one, if it is not there; what cannot be done is told and passed over."""
    directory = _directory(output, task, way, seed)
    if (directory / "evaluation" / "ledger.parquet").is_file():
        return
    own = {"name": "retention", "seed": seed, "data": {"train": [task.train], "max_length": 320}}
    document = _merged(_merged(COMMON, own), WAYS[way])
    document = _merged(document, {"evaluation": {"suites": list(suites)}})
    print(f"{task.name}, {way}, seed {seed}", flush=True)
    try:
        trained = train(Recipe.model_validate(document), directory, resume=True)
        evaluate(trained.session)
    except LoraKitError as error:
        print(f"{task.name}, {way}, seed {seed}: {error}", flush=True)


@dataclass(frozen=True)
class Fall:
    """By how much the loss of a task's items fell.

    Attributes:
        values: (seeds, items).
        clusters: (items,) int, which items are not independent of one another.
    """

    values: Matrix
    clusters: NDArray[np.int64]


def _falls(directories: Sequence[Path]) -> dict[str, Fall]:
    """Of each task, over its seeds."""
    values: dict[str, list[list[float]]] = {}
    clusters: dict[str, list[str]] = {}
    for directory in directories:
        scores: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
        for entry in read_ledger(directory / "evaluation" / "ledger.parquet"):
            if entry.score is not None and entry.arm in ("base", "adapter"):
                items = scores.setdefault(entry.task, {})
                items.setdefault((entry.item, entry.cluster), {})[entry.arm] = entry.score
        for task, of_task in scores.items():
            ordered = sorted(of_task)
            clusters[task] = [cluster or item for item, cluster in ordered]
            falls = [of_task[key]["base"] - of_task[key]["adapter"] for key in ordered]
            values.setdefault(task, []).append(falls)
    return {
        task: Fall(np.array(rows), np.unique(clusters[task], return_inverse=True)[1])
        for task, rows in values.items()
    }


def _figures(output: Path, task: Task, ways: Sequence[str], seeds: int) -> dict[str, Any]:
    found: dict[str, dict[str, Fall]] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    for way in ways:
        places = [_directory(output, task, way, seed) for seed in range(seeds)]
        done = [p for p in places if (p / "evaluation" / "ledger.parquet").is_file()]
        if len(done) == seeds:
            found[way] = _falls(done)
            records[way] = [json.loads((place / "run.json").read_text()) for place in done]
    figures = {}
    for way, of_way in found.items():
        plain = found.get(PLAIN, of_way)
        kept = [_turned(of_way[name]) for name in KEPT]
        spared = [
            Fall(of_way[name].values - plain[name].values, of_way[name].clusters) for name in KEPT
        ]
        trainings = [record["training"] for record in records[way]]
        figures[way] = {
            "gain": _interval([of_way["gain"]]),
            "forgetting": _interval(kept),
            "less_forgetting": _interval(spared),
            "gain_over_plain": round(
                float(of_way["gain"].values.mean() / plain["gain"].values.mean()), 3
            ),
            **{f"forgetting_{name}": _interval([_turned(of_way[name])]) for name in KEPT},
            "parameters": records[way][0]["coverage"]["trainable_parameters"],
            "tokens_per_second": round(float(np.mean([t["tokens_per_second"] for t in trainings]))),
            "peak_memory_gb": round(max(t["peak_memory"] for t in trainings) / 1e9, 2),
        }
    return figures


def _turned(fall: Fall) -> Fall:
    return Fall(-fall.values, fall.clusters)


def _interval(tasks: Sequence[Fall]) -> list[float]:
    """Mean over tasks of the means over seeds and items, with a 95% interval: [mean, low, high]."""
    generator = np.random.default_rng(0)
    total = np.zeros(DRAWS)
    seeds = len(tasks[0].values)
    # How often each seed, and each cluster, is drawn: (draws, seeds), (draws, clusters).
    of_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) / seeds
    for task in tasks:
        count = int(task.clusters.max()) + 1
        drawn = generator.multinomial(count, [1 / count] * count, size=DRAWS)
        weights = drawn[:, task.clusters]
        sums = np.einsum("ds,si,di->d", of_seeds, task.values, weights, optimize=True)
        total += sums / weights.sum(axis=1)
    low, high = np.quantile(total / len(tasks), [0.025, 0.975]).tolist()
    mean = math.fsum(float(task.values.mean()) for task in tasks) / len(tasks)
    return [round(value, 4) for value in (mean, low, high)]


def _print(task: Task, figures: dict[str, Any]) -> None:
    print(f"\n{task.name}: nats (95% interval)")
    columns = ("gain", "forgetting", "less_forgetting")
    print(f"{'way':28}" + "".join(f"{name:>28}" for name in columns) + "  gain/plain  token/s   GB")
    for way, one in figures.items():
        cells = "".join(
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})".rjust(28)
            for mean, low, high in (one[name] for name in columns)
        )
        print(
            f"{way:28}{cells}{one['gain_over_plain']:>12.2f}{one['tokens_per_second']:>9}"
            f"{one['peak_memory_gb']:>5.1f}"
        )


def _plot(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Gain upwards, forgetting to the right: what is good is at the top left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(figures), 5.2), layout="constrained")
    axes = figure.subplots(1, len(figures), squeeze=False)[0]
    for axis, (task, ways) in zip(axes, figures.items(), strict=True):
        for way, one in ways.items():
            (x, left, right), (y, low, high) = one["forgetting"], one["gain"]
            axis.errorbar(x, y, xerr=[[x - left], [right - x]], yerr=[[y - low], [high - y]],
                          fmt="o", markersize=4, linewidth=0.8, capsize=2)  # fmt: skip
            axis.annotate(way, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axis.axvline(0, color="0.7", linewidth=0.8)
        axis.set(title=task, xlabel="forgetting (nats)", ylabel="gain (nats per token)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
