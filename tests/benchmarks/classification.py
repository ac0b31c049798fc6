"""Classification: ways to train a head on real backbones, and what helps against unlike classes.

    python -m tests.benchmarks.classification [--quick] [--output DIR] [--task NAME] [--seeds N]

Each training is a run directory under `--output`; what is there already is not trained again, so
that it can be broken off. Two parts:

`backbones`: all-MiniLM-L6-v2 (an encoder) by its head alone, LoRA, its last two blocks and all
blocks, and SmolLM2-135M (a decoder) by its head alone and LoRA; in float32. The task is the intent
of a spoken request (intent_recognition of BIG-bench, 7 classes, half of the rows for training), or
with `--task areas` the area of the standard library that a docstring is of (`stdlib-areas`, 6
classes, 350 rows for training).

`imbalance`: `stdlib-areas`, three classes with 320 training rows each and three with 16 (1:20),
all-MiniLM-L6-v2; cross-entropy, balanced class weights, focal loss (gamma 2) and both together. The
rare rows are other ones for each seed. Test items are as they come.

Intervals: 95%, by resampling seeds and clusters of items both (2,000 times); `over_plain`: the
difference of macro-F1 from cross-entropy on the same seeds and items.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lora_kit.data.builtin.areas import area_rows
from lora_kit.data.labelled import classification_text
from lora_kit.data.rows import assign_split
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.pipeline import evaluate, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.machine import machine, versions
from tests.bigbench import bigbench_rows

Matrix = NDArray[np.float64]
DRAWS = 2_000
ENCODER, DECODER = "all-minilm-l6-v2", "smollm2-135m-instruct"
HEAD = {"adapter": {"method": "head"}, "training": {"epochs": 30.0, "learning_rate": 1e-2}}
LORA = {"adapter": {"method": "lora"}, "training": {"epochs": 4.0, "learning_rate": 1e-3}}
LAST = {"adapter": {"method": "last-2"}, "training": {"epochs": 4.0, "learning_rate": 3e-4}}
FULL = {"adapter": {"method": "full"}, "training": {"epochs": 4.0, "learning_rate": 3e-4}}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "MiniLM, head": (ENCODER, HEAD),
    "MiniLM, lora": (ENCODER, LORA),
    "MiniLM, last-2": (ENCODER, LAST),
    "MiniLM, full": (ENCODER, FULL),
    "SmolLM2, head": (DECODER, HEAD),
    "SmolLM2, lora": (
        DECODER,
        {"adapter": {"method": "lora"}, "training": {"epochs": 2.0, "learning_rate": 5e-4}},
    ),
}
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "balanced": {"class_weights": "balanced"},
    "focal": {"focal_gamma": 2.0},
    "balanced, focal": {"class_weights": "balanced", "focal_gamma": 2.0},
}
COMMON_ROWS, RARE_ROWS = 320, 16
COMMON_CLASSES = ("development", "graphics", "internet")
AREA_ROWS = 350


@dataclass(frozen=True)
class Task:
    """A file of rows to train on for each seed, and the suite to measure by."""

    name: str
    train: tuple[Path, ...]
    suite: Path


@dataclass(frozen=True)
class Answers:
    """Answers of several seeds of one method to the same items.

    Attributes:
        given: for each seed (items, classes), one-hot.
        true: (items, classes), one-hot.
        clusters: (items,) int.
    """

    given: tuple[Matrix, ...]
    true: Matrix
    clusters: NDArray[np.int64]


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/classification"))
    parser.add_argument("--task", choices=("intents", "areas"), default="intents")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, the encoder's head alone")
    arguments = parser.parse_args()
    output, seeds = arguments.output.absolute(), 1 if arguments.quick else arguments.seeds
    output.mkdir(parents=True, exist_ok=True)
    task = _intents(output) if arguments.task == "intents" else _areas(output)
    ways = list(BACKBONES)[:1] if arguments.quick else list(BACKBONES)
    found = {
        "backbones": {
            way: _measured(output, task, way, *BACKBONES[way], range(1 if "Smol" in way else seeds))
            for way in ways
        }
    }
    rare = _rare(output, seeds)
    methods = {"head": HEAD} if arguments.quick else {"head": HEAD, "lora": LORA}
    for method, own in methods.items():
        epochs = {"training": {"epochs": 30.0 if method == "head" else 2.0}}
        found[f"imbalance, {method}"] = {
            way: _measured(
                output,
                rare,
                f"{method}, {way}",
                ENCODER,
                _merged(_merged(own, epochs), {"classification": loss} if loss else {}),
                range(seeds),
            )
            for way, loss in LOSSES.items()
        }
    figures = {part: _figures(ways) for part, ways in found.items()}
    for part, of_part in figures.items():
        _print(part, of_part)
    print(json.dumps({"figures": figures, "machine": machine(), "versions": versions()}))


def _intents(output: Path) -> Task:
    """Each seed has the same rows: the halves are those of a fixed shuffle."""
    found = [
        {"id": one["id"], "text": one["question"].removeprefix("Utterance: "),
         "label": one["choices"][one["answer"]]}
        for one in bigbench_rows("intent_recognition")
    ]  # fmt: skip
    random.Random(0).shuffle(found)
    middle = len(found) // 2
    test = {"source": str(_written(output / "intents-test.jsonl", found[middle:]))}
    suite = _suite(output, "intents", test)
    return Task("intents", (_written(output / "intents.jsonl", found[:middle]),), suite)


def _areas(output: Path) -> Task:
    rows = _of_areas("train")
    chosen = random.Random(0).sample(rows, AREA_ROWS)
    suite = _suite(output, "areas", {"source": "stdlib-areas"})
    return Task("areas", (_written(output / "areas.jsonl", chosen),), suite)


def _rare(output: Path, seeds: int) -> Task:
    by_class: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in _of_areas("train"):
        by_class[row["label"]].append(row)
    paths = []
    for seed in range(seeds):
        chosen = [
            row
            for name, rows in sorted(by_class.items())
            for row in random.Random(seed).sample(
                rows, COMMON_ROWS if name in COMMON_CLASSES else RARE_ROWS
            )
        ]
        paths.append(_written(output / f"rare-{seed}.jsonl", chosen))
    return Task("rare", tuple(paths), _suite(output, "areas", {"source": "stdlib-areas"}))


def _of_areas(part: str) -> list[dict[str, str]]:
    return [
        {"text": classification_text(row), "label": str(row.label)}
        for row in area_rows()
        if assign_split(row.cluster, 0.1, 0.3) == part
    ]


def _written(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _suite(output: Path, name: str, source: dict[str, str]) -> Path:
    task = {"name": name, "kind": "classification", "score": "macro_f1", **source}
    path = output / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "role": "gain", "tasks": [task]}))
    return path


def _merged(one: Any, other: Any) -> Any:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return one | {name: _merged(one.get(name), value) for name, value in other.items()}


def _measured(
    output: Path, task: Task, way: str, model: str, own: dict[str, Any], seeds: Sequence[int]
) -> list[Path]:
    """A run directory for each seed, trained and evaluated unless it is there."""
    directories = []
    for seed in seeds:
        directory = output / task.name / way.replace(", ", "-") / f"seed-{seed}"
        directories.append(directory)
        if (directory / "evaluation" / "ledger.parquet").is_file():
            continue
        rows = task.train[seed % len(task.train)]
        document = _merged(
            {
                "name": "classification",
                "seed": seed,
                "backbone": {"model": model, "quantization": "none", "dtype": "float32"},
                "data": {"train": [{"source": str(rows)}], "max_length": 64},
                "training": {"objective": "classification", "batch_size": 16},
                "evaluation": {"suites": [str(task.suite)]},
            },
            own,
        )
        if own["adapter"]["method"] != "head":
            document["training"]["micro_batch_size"] = 16
        print(f"{task.name}, {way}, seed {seed}", flush=True)
        evaluate(train(Recipe.model_validate(document), directory, resume=True).session)
    return directories


def _answers(directories: Sequence[Path]) -> Answers:
    given = []
    true = clusters = np.empty(0)
    for directory in directories:
        entries = read_ledger(directory / "evaluation" / "ledger.parquet")
        own = sorted((e for e in entries if e.arm == "adapter"), key=lambda entry: entry.item)
        labels = sorted({entry.reference for entry in own})
        given.append(np.array([[e.output == name for name in labels] for e in own], np.float64))
        true = np.array([[e.reference == name for name in labels] for e in own], np.float64)
        clusters = np.unique([entry.cluster for entry in own], return_inverse=True)[1]
    return Answers(tuple(given), true, np.asarray(clusters, np.int64))


def _macro_f1(weights: Matrix, given: Matrix, true: Matrix) -> Matrix:
    """(draws,): of the classes that have an item in the draw."""
    hits, predicted, support = weights @ (given * true), weights @ given, weights @ true
    f1 = 2 * hits / np.maximum(predicted + support, 1e-300)
    return np.asarray(f1.sum(axis=1, where=support > 0) / (support > 0).sum(axis=1))


def _accuracy(weights: Matrix, given: Matrix, true: Matrix) -> Matrix:
    return np.asarray(weights @ (given * true).sum(axis=1) / weights.sum(axis=1))


def _draws(answers: Answers, score: Any) -> tuple[float, Matrix]:
    """The mean over seeds, and that of each draw of seeds and clusters."""
    generator = np.random.default_rng(0)
    seeds, count = len(answers.given), int(answers.clusters.max()) + 1
    of_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) / seeds
    drawn = generator.multinomial(count, [1 / count] * count, size=DRAWS).astype(np.float64)
    weights = drawn[:, answers.clusters]
    whole = np.ones((1, len(answers.clusters)))
    point = float(np.mean([score(whole, given, answers.true)[0] for given in answers.given]))
    several = np.stack([score(weights, given, answers.true) for given in answers.given])
    return point, np.einsum("ds,sd->d", of_seeds, several)


def _interval(point: float, draws: Matrix) -> list[float]:
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return [round(value, 4) for value in (point, low, high)]


def _figures(ways: dict[str, list[Path]]) -> dict[str, Any]:
    plain = _draws(_answers(ways["plain"]), _macro_f1) if "plain" in ways else None
    figures = {}
    for way, directories in ways.items():
        answers = _answers(directories)
        point, draws = _draws(answers, _macro_f1)
        records = [json.loads((place / "run.json").read_text()) for place in directories]
        figures[way] = {
            "seeds": len(directories),
            "items": len(answers.true),
            "accuracy": _interval(*_draws(answers, _accuracy)),
            "macro_f1": _interval(point, draws),
            **({"over_plain": _interval(point - plain[0], draws - plain[1])} if plain else {}),
            "parameters": records[0]["coverage"]["trainable_parameters"],
            "seconds": round(float(np.mean([r["training"]["seconds"] for r in records])), 1),
            "tokens_per_second": round(
                float(np.mean([r["training"]["tokens_per_second"] for r in records]))
            ),
        }
    return figures


def _print(part: str, figures: dict[str, Any]) -> None:
    columns = [name for name in ("accuracy", "macro_f1", "over_plain")
               if name in next(iter(figures.values()))]  # fmt: skip
    print(f"\n{part} (95% interval)")
    print(f"{'way':20}" + "".join(f"{name:>26}" for name in columns) + "   parameters  seconds")
    for way, one in figures.items():
        cells = "".join(
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})".rjust(26)
            for mean, low, high in (one[name] for name in columns)
        )
        print(f"{way:20}{cells}{one['parameters']:>13,}{one['seconds']:>9.1f}")


if __name__ == "__main__":
    main()
