"""Rank allocation of AdaLoRA."""

from pathlib import Path

import pytest
import torch

from lora_kit.adapter.attach import attach_saved
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import AdapterError
from lora_kit.training.rank_allocation import pruning_phases


def test_adalora_ends_with_the_ranks_it_was_given(tiny_recipe: Recipe, tmp_path: Path) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["adapter"] = {"method": "adalora", "rank": 2}
    document["training"] |= {"epochs": 4.0, "learning_rate": 5e-2}
    recipe = Recipe.model_validate(document)
    trained = train(recipe, tmp_path / "run")
    pattern = trained.session.model.peft_config["default"].rank_pattern
    assert sum(sum(ranks) for ranks in pattern.values()) == 2 * len(pattern)
    before, after = trained.result.validation_before, trained.result.validation_after
    assert before is not None
    assert after is not None
    assert after < before
    spec = recipe.backbone
    reloaded = attach_saved(load(resolve(spec), spec), tmp_path / "run" / "adapter")
    ids = torch.arange(50, 70)[None]
    with torch.no_grad():
        one, other = (model.eval()(ids).logits for model in (reloaded, trained.session.model))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("steps", range(3, 24))
def test_the_usual_phases_leave_steps_to_choose_ranks_in(steps: int) -> None:
    warm, settled = pruning_phases({}, steps)
    assert 0 <= warm < steps - settled <= steps


@pytest.mark.parametrize(
    ("epochs", "options"), [(0.5, {}), (4.0, {"tinit": 100, "tfinal": 100}), (4.0, {"tfinal": 15})]
)
def test_a_training_without_a_step_to_choose_ranks_in_is_refused_before_it(
    tiny_recipe: Recipe, tmp_path: Path, epochs: float, options: dict[str, int]
) -> None:
    """Without the check, PEFT raises a KeyError at the last step or when saving."""
    document = tiny_recipe.model_dump(mode="json")
    document["adapter"] = {"method": "adalora", "rank": 2, "options": options}
    document["training"] |= {"epochs": epochs}
    with pytest.raises(
        AdapterError, match=r"adapter\.method: adalora has no step left .*\(got \d+ steps"
    ):
        train(Recipe.model_validate(document), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_three_steps_are_enough(tiny_recipe: Recipe, tmp_path: Path) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document["adapter"] = {"method": "adalora", "rank": 2}
    document["training"] |= {"epochs": 0.75}
    assert train(Recipe.model_validate(document), tmp_path / "run").result.steps == 3
