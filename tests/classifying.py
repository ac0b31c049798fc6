"""Helpers for tests of classifiers: rows of three classes, and a recipe that learns them."""

import json
from pathlib import Path
from typing import Any

import yaml

from lora_kit.recipe.recipe import Recipe

WORDS = {"fruit": "apple pear plum", "metal": "iron copper zinc", "bird": "heron wren crow"}


def write_rows(path: Path, sizes: dict[str, int]) -> Path:
    rows = [
        {"id": f"{label}/{n}", "text": f"number {n} of {WORDS[label].split()[n % 3]}s",
         "label": label}
        for label, size in sizes.items()
        for n in range(size)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "kind", "kind": "classification", "source": str(source), **own}
    suite = {"name": "kinds", "role": "gain", "tasks": [task]}
    path.write_text(yaml.safe_dump(suite))
    return path


def classes_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train = write_rows(folder / "train.jsonl", {"fruit": 12, "metal": 6, "bird": 6})
    test = write_rows(folder / "test.jsonl", {"fruit": 5, "metal": 4, "bird": 3})
    document: dict[str, Any] = {
        "name": "kinds",
        "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": [{"source": str(train)}], "max_length": 32, "audit": {"leakage": 1.0}},
        "training": {"objective": "classification", "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"suites": [str(write_suite(folder / "kinds.yaml", test))]},
    }
    for section, fields in changes.items():
        existing = {} if section == "adapter" else document.get(section, {})
        document[section] = existing | fields
    return Recipe.model_validate(document)
