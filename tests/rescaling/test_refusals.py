"""Adapters that cannot be rescaled are refused before suites are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_kit.pipeline import rescale
from lora_kit.runtime.errors import AdapterError, RecipeError
from tests.classifying import classes_recipe
from tests.rewarding import reward_recipe


@pytest.mark.parametrize(
    ("recipe_of", "objective"), [(classes_recipe, "classification"), (reward_recipe, "reward")]
)
def test_an_adapter_with_a_head(recipe_of: Any, objective: str, tiny: Path, tmp_path: Path) -> None:
    """The message names no --suite: a suite of the other role would not help."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe_of(tiny, tmp_path).to_yaml())
    with pytest.raises(
        RecipeError, match=rf"a head .*\(got training\.objective {objective}\)"
    ) as refused:
        rescale(run)
    assert "--suite" not in str(refused.value)


def test_an_adapter_whose_effect_is_not_linear(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    recipe = classes_recipe(tiny, tmp_path, training={"objective": "sft"})
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    (run / "adapter" / "adapter_model.safetensors").touch()
    config = {"peft_type": "LORA", "use_dora": True}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="use_dora: makes the adapter more"):
        rescale(run)
