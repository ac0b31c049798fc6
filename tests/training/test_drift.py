"""Drift of held-out prompts during training."""

import json
from pathlib import Path

import pytest

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.drift import PROMPT_TOKENS, prompt_drift
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.drift import HeldOutDrift, held_out_prompt
from tests.training.keeping import changed, disturbed

PROMPTS = [tuple(range(100, 130)), tuple(range(200, 207))]


def test_the_prompt_is_what_stands_before_the_answer() -> None:
    ids = tuple(range(200))

    def labelled(start: int) -> Example:
        return Example(ids, (IGNORE_INDEX,) * start + ids[start:])

    assert held_out_prompt(labelled(20)) == ids[:20]
    assert held_out_prompt(labelled(150)) == ids[150 - PROMPT_TOKENS : 150]
    assert held_out_prompt(labelled(0)) == held_out_prompt(labelled(1)) == ids[:PROMPT_TOKENS]


def test_drift_in_training_is_that_of_evaluation(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe, size=0.3)
    found = HeldOutDrift(model, tiny_backbone, PROMPTS)
    pad_token_id = tiny_backbone.tokenizer.pad_token_id
    expected = prompt_drift(model.eval(), PROMPTS, pad_token_id, model.device)
    # Again with the stored logits of the base.
    for _ in range(2):
        assert found.measure() == pytest.approx(sum(expected) / 2)
    assert sum(expected) > 1e-3


def test_a_new_adapter_has_not_drifted(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    assert HeldOutDrift(model, tiny_backbone, PROMPTS).measure() == 0
    assert model.training, "the mode is restored"


def test_drift_is_logged_with_the_validation_loss_and_grows(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = changed(tiny_recipe, {}, epochs=2.0, learning_rate=5e-3, eval_steps=4)
    result = train(recipe, tmp_path / "run").result
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    first, last = (line for line in lines if "validation_loss" in line)
    assert 0 < first["drift"] < last["drift"]
    assert result.drift == pytest.approx(last["drift"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["training"]["drift"] == result.drift
