"""Recipes, rows and trainer inputs for tests of the preference objectives, GRPO and SDFT."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from lora_kit.adapter.attach import attach
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.data.dataset import prepare
from lora_kit.data.units import PreparedUnits
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.training.inputs import TrainingInputs
from tests.training_rows import training_rows

OBJECTIVES = ("dpo", "kto", "orpo", "grpo", "sdft")


def row(number: int, objective: str) -> dict[str, Any]:
    asked = f"What is {number} plus {number + 3}?"
    right, wrong = f"It is {2 * number + 3}.", f"Who knows, {number}?"
    if objective in ("dpo", "orpo"):
        return {"prompt": asked, "chosen": right, "rejected": wrong}
    if objective == "sdft":
        return {"prompt": asked, "completion": right}
    good = number % 3 > 0
    return {"prompt": asked, "completion": right if good else wrong, "label": good}


def recipe_of(tiny: Path, folder: Path, objective: str, **training: Any) -> Recipe:
    """Return a recipe of two epochs of three steps, with a checkpoint after each step."""
    rows = folder / f"{objective}.jsonl"
    rows.write_text("".join(json.dumps(row(n, objective)) + "\n" for n in range(12)))
    quiz = {
        "name": "quiz",
        "role": "gain",
        "tasks": [{"name": "line", "kind": "loss", "source": "python-reference", "limit": 2}],
    }
    (folder / "quiz.yaml").write_text(yaml.safe_dump(quiz))
    document: dict[str, Any] = {
        "name": "tiny",
        "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": [{"source": str(rows)}], "max_length": 128},
        "training": {
            "objective": objective,
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "save_steps": 1,
            "save_total_limit": 100,
            **training,
        },
        "evaluation": {"suites": [str(folder / "quiz.yaml")]},
    }
    if objective == "grpo":
        document["grpo"] = {"rewards": ["chrf"], "num_generations": 2, "max_new_tokens": 4}
    if objective == "sdft":
        document["sdft"] = {"max_new_tokens": 4}
    return Recipe.model_validate(document)


def trainer_inputs(recipe: Recipe, directory: Path) -> TrainingInputs:
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    objective = recipe.training.objective
    rows, _ = training_rows(recipe.data, recipe.seed, objective)
    data = prepare(rows, backbone.tokenizer, recipe.data, 0, objective)
    assert isinstance(data, PreparedUnits)
    model = attach(backbone, recipe.adapter, recipe.seed)
    return TrainingInputs(recipe, backbone, model, data, None, RunDirectory(directory))


def perturb_adapter(model: torch.nn.Module) -> None:
    """Add noise to the trainable weights, so that the adapter differs from the base."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
