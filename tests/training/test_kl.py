"""KL penalty."""

from pathlib import Path

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from tests.training.keeping import changed, disturbed, gradient, kl_penalty_of


def test_the_penalty_is_the_divergence_from_the_base(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    penalty = kl_penalty_of(model, tiny_backbone)
    result = sum(float(part) for part in penalty.losses(0, 0, 1))
    total, tokens = 0.0, 0
    for number in penalty._step_indices(0):
        ids = torch.tensor([penalty._examples[number].input_ids])
        with torch.no_grad():
            adapted = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            with adapter_disabled(model):
                base = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total += float((base.exp() * (base - adapted)).sum())
        tokens += ids.shape[1] - 1
    assert result == pytest.approx(total / tokens, rel=1e-4)
    assert result > 1e-4


def test_a_new_adapter_has_no_penalty(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    assert sum(float(part) for part in kl_penalty_of(model, tiny_backbone).losses(0, 0, 1)) == 0


def test_the_parts_of_two_processes_add_up_to_the_penalty(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    penalty = kl_penalty_of(model, tiny_backbone)
    for part in penalty.losses(4, 0, 1):
        part.backward()
    alone = gradient(model)
    for process in (0, 1):
        for part in penalty.losses(4, process, 2):
            part.backward()
    torch.testing.assert_close(gradient(model), alone, rtol=1e-4, atol=1e-7)


def test_each_text_is_used_once_per_epoch(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    penalty = kl_penalty_of(attach(tiny_backbone, tiny_recipe.adapter, 0), tiny_backbone)
    seen = [number for step in range(8) for number in penalty._step_indices(step)]
    assert [sorted(seen[start : start + 8]) for start in (0, 8, 16)] == [list(range(8))] * 3
    assert seen[:8] != seen[8:16]


def test_training_with_the_penalty_stays_nearer_to_the_base(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    strong = {"kl": {"weight": 50.0, "rows": 4, "length": 32}}
    divergence = {}
    for name, retention in (("free", {}), ("held", strong)):
        recipe = changed(tiny_recipe, retention, epochs=2.0, learning_rate=5e-3)
        trained = train(recipe, tmp_path / name)
        model = trained.session.model.eval()
        penalty = kl_penalty_of(model, trained.session.backbone)
        with torch.no_grad():
            divergence[name] = sum(float(part) for part in penalty.losses(0, 0, 1))
        assert trained.result.final_loss < trained.result.first_loss
        assert ("kl" in trained.result.history[-1]) is (name == "held")
    assert divergence["held"] < 0.5 * divergence["free"]
