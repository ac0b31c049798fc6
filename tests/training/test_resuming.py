"""A training goes on where it belongs, and a new one has a directory of its own."""

import shutil
from pathlib import Path

import pytest

from lora_kit import pipeline
from lora_kit.errors import RecipeError
from lora_kit.recipe import Recipe
from tests.training.cut import cut_off, with_training


def test_another_recipe_does_not_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, recipe, tmp_path / "run", 2)
    other = with_training(recipe, learning_rate=0.5)
    with pytest.raises(RecipeError, match=r"training.learning_rate: 0.001 then, 0.5 now"):
        pipeline.train(other, tmp_path / "run", resume=True)
    data = Path(recipe.data.train[0].source)
    lines = data.read_text().splitlines(keepends=True)
    shutil.copy(data, tmp_path / "kept.jsonl")
    data.write_text("".join(lines[1:] + lines[:1]))
    with pytest.raises(RecipeError, match=r"the rows of data\.train"):
        pipeline.train(recipe, tmp_path / "run", resume=True)


def test_a_finished_run_is_not_trained_again(recipe: Recipe, tmp_path: Path) -> None:
    first = pipeline.train(recipe, tmp_path / "run").result
    stamp = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = pipeline.train(recipe, tmp_path / "run", resume=True).result
    assert again.to_dict() == first.to_dict()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
