"""Helpers for tests of embeddings: pairs of texts, and a recipe that learns them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_kit.data.rows import Row
from lora_kit.data.supervision import Example
from lora_kit.data.units import Unit
from lora_kit.recipe.recipe import Recipe

FRUITS = ("apple", "pear", "plum", "cherry", "fig", "grape", "lemon", "lime")
COLOURS = ("red", "green", "blue", "brown", "white", "black", "grey", "pink")


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    """Return pairs of a number with a fruit and with its colour, in clusters of three."""
    return [
        {
            "anchor": f"{FRUITS[number % 8]} {number}",
            "positive": f"{COLOURS[number % 8]} {number // 8}",
            "cluster": f"cluster {number // 3}",
        }
        for number in range(start, start + count)
    ]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "found", "kind": "retrieval", "source": str(source), **own}
    path.write_text(yaml.safe_dump({"name": "finding", "role": "gain", "tasks": [task]}))
    return path


def embedding_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train = write(folder / "train.jsonl", pairs(48))
    test = write(folder / "test.jsonl", pairs(24, 100))
    document: dict[str, Any] = {
        "name": "embed",
        "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {
            "train": [{"source": str(train)}],
            "max_length": 32,
            "audit": {"leakage": 1.0},
        },
        "training": {"objective": "embedding", "batch_size": 8, "learning_rate": 1e-2},
        "evaluation": {"suites": [str(write_suite(folder / "finding.yaml", test))]},
    }
    for section, fields in changes.items():
        existing = {} if section == "adapter" else document.get(section, {})
        document[section] = existing | fields
    return Recipe.model_validate(document)


def unit(*texts: Sequence[int]) -> Unit:
    """Return a pair or a triplet of token ids."""
    return Unit(Row("", ""), tuple(Example(tuple(ids), tuple(ids)) for ids in texts))
