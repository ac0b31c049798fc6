"""Checks that apply to every retention method."""

from pathlib import Path
from typing import Any

import pytest

from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import KlSpec, RetentionSpec
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runtime.errors import DataError, RecipeError
from tests.training.keeping import changed


@pytest.mark.parametrize("name", ["kl", "corda"])
def test_texts_that_contain_suite_items_are_refused(
    tiny_recipe: Recipe, tmp_path: Path, name: str
) -> None:
    retention = {name: {"source": "python-reference", "split": "test"}}
    evaluation = EvaluationSpec(suites=["core-retention"])
    options = {"init_lora_weights": "corda"} if name == "corda" else {}
    adapter = tiny_recipe.adapter.model_copy(update={"options": options})
    recipe = tiny_recipe.model_copy(update={"adapter": adapter, "evaluation": evaluation})
    with pytest.raises(DataError, match=rf"retention\.{name}\.source: .* items of core-retention"):
        train(changed(recipe, retention), tmp_path / "run")


def test_error_for_missing_texts_names_the_field(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = changed(tiny_recipe, {"kl": {"source": "nowhere.jsonl"}})
    with pytest.raises(DataError, match=r"retention\.kl\.source"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"keep_best": True, "eval_steps": 1}, "retention": {"early_stopping": {}}},
         "training.keep_best: .* so does retention.early_stopping"),
        ({"training": {"gradual_unfreezing_steps": 2}, "adapter": {"method": "adalora"}},
         "training.gradual_unfreezing_steps: does not work with adalora"),
    ],
)  # fmt: skip
def test_incompatible_fields_are_refused(
    tiny_recipe: Recipe, changes: dict[str, Any], message: str
) -> None:
    document = tiny_recipe.model_dump(mode="json")
    for name, value in changes.items():
        document[name] = (document[name] if name != "adapter" else {}) | value
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(document)


def test_resuming_with_another_retention_section_is_refused(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    train(changed(tiny_recipe, {"kl": {"length": 16}}, epochs=1.0), tmp_path / "run")
    other = changed(tiny_recipe, {"kl": {"length": 16, "weight": 2.0}}, epochs=1.0)
    with pytest.raises(RecipeError, match=r"retention\.kl\.weight: 1\.0 -> 2\.0"):
        train(other, tmp_path / "run", resume=True)


def test_retention_is_a_section_of_the_recipe() -> None:
    assert RetentionSpec() == RetentionSpec.model_validate({})
    assert RetentionSpec.model_validate({"kl": {}}).kl == KlSpec()
