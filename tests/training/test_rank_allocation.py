"""AdaLoRA's ranks."""

from pathlib import Path

import torch

from lora_kit.adapters import attach_saved
from lora_kit.backbone import load
from lora_kit.backbone_files import resolve
from lora_kit.pipeline import train
from lora_kit.recipe import Recipe


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
