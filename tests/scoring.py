"""Helpers for tests of regressions: rows with numbers, and a recipe that learns them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_kit.recipe.recipe import Recipe


def write_rows(path: Path, numbers: Sequence[int], names: Sequence[str] = ()) -> Path:
    """Write texts that repeat a word a number of times; with names, several numbers each."""
    rows = [
        {
            "id": f"{place}/{number}",
            "text": f"text {place}: " + "very " * number + "good",
            **({"scores": {n: 100 + 10 * number + k for k, n in enumerate(names)}} if names else
               {"score": 100 + 10 * number}),
        }
        for place, number in enumerate(numbers)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "praise", "kind": "regression", "source": str(source), **own}
    path.write_text(yaml.safe_dump({"name": "praises", "role": "gain", "tasks": [task]}))
    return path


def numbers_recipe(model: Path, folder: Path, names: Sequence[str] = (), **changes: Any) -> Recipe:
    train = write_rows(folder / "train.jsonl", [0, 1, 2, 3, 4, 5] * 4, names)
    test = write_rows(folder / "test.jsonl", [5, 0, 3, 4, 1, 2] * 5, names)
    document: dict[str, Any] = {
        "name": "praises",
        "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": [{"source": str(train)}], "max_length": 32, "audit": {"leakage": 1.0}},
        "training": {"objective": "regression", "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"suites": [str(write_suite(folder / "praises.yaml", test))]},
    }
    for section, fields in changes.items():
        existing = {} if section == "adapter" else document.get(section, {})
        document[section] = existing | fields
    return Recipe.model_validate(document)
