"""The plane of gain against forgetting: tasks, one training a cell, losses with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lora_kit.evaluation.ledger import read_ledger
from lora_kit.pipeline import evaluate, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import LoraKitError
from tests.bigbench import bigbench_rows

Matrix = NDArray[np.float64]
ROWS, HELD_OUT, DRAWS = 96, 96, 10_000
COMMON = {
    "backbone": {"model": "smollm2-135m-instruct", "quantization": "none", "dtype": "float32"},
    "training": {"epochs": 1.0, "batch_size": 4, "learning_rate": 1e-3},
    "evaluation": {"arms": ["base", "adapter"]},
}
KEPT = {
    "prose": {"kind": "loss", "source": "python-reference", "limit": 40, "max_length": 160},
    "knowledge": {"kind": "multiple_choice", "source": "general-knowledge", "limit": 200},
    "arithmetic": {"kind": "multiple_choice", "source": "arithmetic", "limit": 120},
}


@dataclass(frozen=True)
class Task:
    """Learned task: rows, and the suite of held-out items by which the gain is measured."""

    name: str
    train: dict[str, Any]
    held_out: dict[str, Any]


def tasks_of(output: Path) -> Iterable[Task]:
    """Yield one-line docstrings, and two tasks of BIG-bench: sentences from attributes, questions.

    The latter are written to files, whose held-out inputs are not in the training rows.
    """
    docstrings = {"source": "stdlib-docstrings"}
    yield Task(
        "docstrings",
        {**docstrings, "split": "train", "limit": ROWS},
        {**docstrings, "split": "test", "limit": HELD_OUT, "max_length": 320},
    )
    yield _bigbench_task(output, "e2e", "gem__e2e_nlg", "Write a sentence: ")
    questions = "linguistic_mappings__question_formation_json"
    yield _bigbench_task(output, "questions", questions, "Turn this into a question: ")


def _bigbench_task(output: Path, name: str, source: str, instruction: str) -> Task:
    items = bigbench_rows(source)
    inputs = list(dict.fromkeys(item["input"] for item in items))
    tested = set(inputs[:: max(len(inputs) // HELD_OUT, 2)])
    paths = {}
    for part, is_tested in (("train", False), ("test", True)):
        paths[part] = output.absolute() / f"{name}-{part}.jsonl"
        examples = [
            {"prompt": f"{instruction}{item['input']}", "completion": item["targets"][0]}
            for item in items
            if (item["input"] in tested) is is_tested
        ]
        paths[part].write_text("".join(json.dumps(row) + "\n" for row in examples))
    return Task(
        name,
        {"source": str(paths["train"]), "limit": ROWS},
        {"source": str(paths["test"]), "limit": HELD_OUT},
    )


def suites_of(output: Path, task: Task, only: Sequence[str] = tuple(KEPT)) -> list[str]:
    """Two suites, of the gain and of what is kept, as files."""
    gain = {"name": "gain", "kind": "loss", **task.held_out}
    kept = [
        {"name": name, "margin": 0.05, "rationale": "As in core-retention.", **one}
        | ({"score": "loss"} if one["kind"] != "loss" else {})
        for name, one in KEPT.items()
        if name in only
    ]
    documents = [
        {"name": f"{task.name}-gain", "role": "gain", "tasks": [gain]},
        {"name": "kept", "role": "retention", "tasks": kept},
    ]
    paths = [output / f"{document['name']}.yaml" for document in documents]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(yaml.safe_dump(document))
    return [str(path.absolute()) for path in paths]


def recipe_of(task: Task, seed: int, *changes: dict[str, Any]) -> Recipe:
    """The recipe of a cell: what all have in common, and in what it differs."""
    own = {"name": "retention", "seed": seed, "data": {"train": [task.train], "max_length": 320}}
    document = COMMON
    for change in (own, *changes):
        document = merged(document, change)
    return Recipe.model_validate(document)


def merged(one: Any, other: Any) -> Any:
    """Return a document with the values of another one put in, section by section."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return one | {name: merged(one.get(name), value) for name, value in other.items()}


def is_done(directory: Path) -> bool:
    """Return True if a cell was trained and measured."""
    return (directory / "evaluation" / "ledger.parquet").is_file()


def fill(directory: Path, recipe: Recipe, name: str) -> None:
    """Train and measure a cell if it is not there; what cannot be done is told and passed over."""
    if is_done(directory):
        return
    print(name, flush=True)
    try:
        trained = train(recipe, directory, resume=True)
        evaluate(trained.session, stopping="none")
    except LoraKitError as error:
        print(f"{name}: {error}", flush=True)


@dataclass(frozen=True)
class Fall:
    """By how much the loss of a task's items fell.

    Attributes:
        values: (seeds, items).
        clusters: (items,) int, which items are not independent of one another.
    """

    values: Matrix
    clusters: NDArray[np.int64]


def falls_of(directories: Sequence[Path]) -> dict[str, Fall]:
    """Return the summary of each task over its seeds."""
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


def turned(fall: Fall) -> Fall:
    return Fall(-fall.values, fall.clusters)


def kept_of(falls: dict[str, Fall]) -> list[Fall]:
    """By how much the losses of what was not trained rose."""
    return [turned(falls[name]) for name in KEPT]


def interval(tasks: Sequence[Fall]) -> list[float]:
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
