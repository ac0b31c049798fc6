"""Recipe of a head on a tiny model, for the helpers of each kind of head."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lora_kit.recipe.recipe import Recipe


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_gain_suite(path: Path, name: str, task: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"name": name, "role": "gain", "tasks": [dict(task)]}))
    return path


def head_recipe(
    model: Path, name: str, objective: str, train: Path, suite: Path, changes: Mapping[str, Any]
) -> Recipe:
    """Return a recipe with changes of its sections; a changed adapter replaces the default one."""
    document: dict[str, Any] = {
        "name": name,
        "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": [{"source": str(train)}], "max_length": 32, "audit": {"leakage": 1.0}},
        "training": {"objective": objective, "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"suites": [str(suite)]},
    }
    for section, fields in changes.items():
        existing = {} if section == "adapter" else document.get(section, {})
        document[section] = existing | fields
    return Recipe.model_validate(document)
