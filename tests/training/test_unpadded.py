"""Forward passes without padding, whose examples are separated by their lengths."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_kit.backbone.attention import VARLEN
from lora_kit.data.batches import resolve_packing
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.micro_batcher import MicroBatcher

GPU = torch.device("cuda")


def changed(recipe: Recipe, attention: str, packing: Any, **training: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["backbone"]["attention"] = attention
    document["data"]["packing"] = packing
    document["training"] |= training
    return Recipe.model_validate(document)


@pytest.mark.slow  # two trainings
@pytest.mark.parametrize("packing", ["unpadded", True])
def test_a_training_by_lengths_is_that_of_padded_rows(
    tiny_recipe: Recipe, tmp_path: Path, packing: Any
) -> None:
    options = {"gradient_checkpointing": packing == "unpadded"}
    padded = train(changed(tiny_recipe, "sdpa", None), tmp_path / "padded")
    trained = train(changed(tiny_recipe, VARLEN, packing, **options), tmp_path / "run")
    recorded = yaml.safe_load(trained.run.recipe.read_text())
    assert recorded["backbone"]["attention"] == VARLEN
    assert recorded["data"]["packing"] == packing
    expected, found = (
        load_file(one.run.adapter / "adapter_model.safetensors") for one in (padded, trained)
    )
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)
    for name in ("final_loss", "validation_before", "validation_after"):
        expected, found = (getattr(one.result, name) for one in (padded, trained))
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_default_depends_on_device_and_attention(tiny_recipe: Recipe) -> None:
    assert tiny_recipe.data.packing is None
    assert resolve_packing(tiny_recipe, VARLEN, "cuda") == "unpadded"
    assert resolve_packing(tiny_recipe, "flash_attention_2", "cuda") == "unpadded"
    assert resolve_packing(tiny_recipe, "sdpa", "cuda") is False
    assert resolve_packing(tiny_recipe, VARLEN, "cpu") is False
    for chosen in (True, False, "unpadded"):
        assert resolve_packing(changed(tiny_recipe, "auto", chosen), "sdpa", "cpu") == chosen
    prompts = tiny_recipe.model_dump(mode="json") | {"adapter": {"method": "prompt_tuning"}}
    assert resolve_packing(Recipe.model_validate(prompts), VARLEN, "cuda") is False


def test_an_unpadded_pass_has_the_rows_of_a_padded_one(tiny_recipe: Recipe) -> None:
    recipe = changed(tiny_recipe, "auto", None, batch_size=8, micro_batch_size=4)
    batcher = MicroBatcher.of(recipe, 1, GPU, VARLEN)
    assert (batcher.rows, batcher.tokens, batcher.packing) == (4, None, True)
    filled = MicroBatcher.of(changed(recipe, "auto", True), 1, GPU, VARLEN)
    assert (filled.rows, filled.tokens) == (8, recipe.data.max_length)
    limited = changed(recipe, "auto", None, max_tokens_per_batch=50)
    assert MicroBatcher.of(limited, 1, GPU, VARLEN).tokens == 50
