"""Helpers for tests of multi-label heads: rows with labels, and a recipe that learns them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_kit.recipe.recipe import Recipe

WORDS = {"fruit": "apple", "metal": "iron", "bird": "heron"}
SETS = ((), ("fruit",), ("metal",), ("bird",), ("fruit", "metal"), ("bird", "fruit"))


def write_rows(path: Path, sets: Sequence[Sequence[str]]) -> Path:
    """Write texts with a word for each of their labels."""
    rows = [
        {
            "id": f"row {number}",
            "text": " and ".join([f"number {number}", *(WORDS[label] for label in labels)]),
            "labels": list(labels),
        }
        for number, labels in enumerate(sets)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "kinds", "kind": "multi_label", "source": str(source), **own}
    path.write_text(yaml.safe_dump({"name": "tags", "role": "gain", "tasks": [task]}))
    return path


def labels_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train = write_rows(folder / "train.jsonl", SETS * 6)
    held_out = write_rows(folder / "held-out.jsonl", SETS * 2)
    test = write_rows(folder / "test.jsonl", SETS * 3)
    document: dict[str, Any] = {
        "name": "tags",
        "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {
            "train": [{"source": str(train)}],
            "validation": [{"source": str(held_out)}],
            "max_length": 32,
            "audit": {"leakage": 1.0},
        },
        "training": {"objective": "multi-label", "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"suites": [str(write_suite(folder / "tags.yaml", test, score="macro_f1"))]},
    }
    for section, fields in changes.items():
        existing = {} if section == "adapter" else document.get(section, {})
        document[section] = existing | fields
    return Recipe.model_validate(document)
