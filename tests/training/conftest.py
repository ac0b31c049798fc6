"""Recipe of interrupted trainings, and a trained reward model."""

from pathlib import Path

import pytest

from lora_kit import pipeline
from lora_kit.recipe.recipe import Recipe
from tests.rewarding import reward_recipe


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    """Two epochs of four steps, with dropout, so that the random state matters."""
    changed = tiny_recipe.model_dump(mode="json")
    changed["adapter"]["dropout"] = 0.2
    changed["training"] |= {"epochs": 2.0, "save_steps": 1, "save_total_limit": 100}
    return Recipe.model_validate(changed)


@pytest.fixture(scope="session")
def reward_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter is a reward model, trained for six steps."""
    folder = tmp_path_factory.mktemp("reward")
    pipeline.train(reward_recipe(tiny, folder), folder / "run")
    return folder / "run"
