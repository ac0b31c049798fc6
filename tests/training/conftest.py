"""The recipe of trainings that are cut off."""

from pathlib import Path

import pytest
import yaml

from lora_kit.recipe import Recipe


@pytest.fixture
def recipe(tiny_recipe: Recipe, tmp_path: Path) -> Recipe:
    """Two epochs of four steps, with dropout, so that the random state matters."""
    quiz = {
        "name": "quiz",
        "role": "gain",
        "tasks": [{"name": "line", "kind": "loss", "source": "python-reference", "limit": 2}],
    }
    (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(quiz))
    changed = tiny_recipe.model_dump(mode="json")
    changed["adapter"]["dropout"] = 0.2
    changed["training"] |= {"epochs": 2.0, "checkpoint_steps": 1, "keep_checkpoints": 100}
    changed["evaluation"]["suites"] = [str(tmp_path / "quiz.yaml")]
    return Recipe.model_validate(changed)
