"""Recipes, pairs and trainer inputs for tests of reward models."""

import json
from pathlib import Path
from typing import Any

import yaml

from lora_kit.adapter.attach import attach
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import REWARD
from lora_kit.backbone.load import load
from lora_kit.data.dataset import prepare
from lora_kit.data.units import PreparedUnits
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.training.inputs import TrainingInputs
from tests.training_rows import training_rows


def write_pairs(path: Path, count: int, start: int = 0) -> Path:
    """Write pairs whose chosen answer is the shorter one, except in every third pair."""
    rows = []
    for n in range(start, start + count):
        right = f"It is {2 * n + 3}." if n % 3 else f"It is {2 * n + 3}, which I am quite sure of."
        asked = f"What is {n} plus {n + 3}?"
        rows.append({"prompt": asked, "chosen": right, "rejected": f"Who knows about {n}?"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {
        "name": "sums",
        "kind": "multiple_choice",
        "source": str(source),
        "chat": True,
        "template": "{prompt}",
        **own,
    }
    path.write_text(yaml.safe_dump({"name": "better", "role": "gain", "tasks": [task]}))
    return path


def reward_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    """Return a recipe of two epochs of three steps, with a checkpoint after each step."""
    train = write_pairs(folder / "train.jsonl", 12)
    test = write_pairs(folder / "test.jsonl", 9, start=100)
    document: dict[str, Any] = {
        "name": "better",
        "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": [{"source": str(train)}], "max_length": 128, "audit": {"leakage": 1.0}},
        "training": {
            "objective": "reward",
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "save_steps": 1,
            "save_total_limit": 100,
        },
        "evaluation": {"suites": [str(write_suite(folder / "better.yaml", test))]},
    }
    for section, fields in changes.items():
        original = {} if section == "adapter" else document.get(section, {})
        document[section] = original | fields
    return Recipe.model_validate(document)


def trainer_inputs(recipe: Recipe, directory: Path) -> TrainingInputs:
    backbone = load(resolve(recipe.backbone), recipe.backbone, REWARD)
    rows, _ = training_rows(recipe.data, recipe.seed, "reward")
    data = prepare(rows, backbone.tokenizer, recipe.data, 0, "reward", REWARD)
    assert isinstance(data, PreparedUnits)
    model = attach(backbone, recipe.adapter, recipe.seed)
    return TrainingInputs(recipe, backbone, model, data, None, RunDirectory(directory))
