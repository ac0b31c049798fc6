"""The KL anchor."""

from pathlib import Path

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from tests.training.keeping import anchor_of, changed, disturbed, gradient


def test_the_anchor_is_the_divergence_from_the_base(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    anchor = anchor_of(model, tiny_backbone)
    found = sum(float(part) for part in anchor.losses(0, 0, 1))
    total, tokens = 0.0, 0
    for number in anchor._of_step(0):
        ids = torch.tensor([anchor._examples[number].input_ids])
        with torch.no_grad():
            now = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            with adapter_disabled(model):
                base = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total += float((base.exp() * (base - now)).sum())
        tokens += ids.shape[1] - 1
    assert found == pytest.approx(total / tokens, rel=1e-4)
    assert found > 1e-4


def test_a_new_adapter_is_at_the_anchor(tiny_backbone: Backbone, tiny_recipe: Recipe) -> None:
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    assert sum(float(part) for part in anchor_of(model, tiny_backbone).losses(0, 0, 1)) == 0


def test_the_parts_of_two_processes_are_the_anchor_of_one(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    anchor = anchor_of(model, tiny_backbone)
    for part in anchor.losses(4, 0, 1):
        part.backward()
    alone = gradient(model)
    for process in (0, 1):
        for part in anchor.losses(4, process, 2):
            part.backward()
    torch.testing.assert_close(gradient(model), alone, rtol=1e-4, atol=1e-7)


def test_each_text_is_seen_before_one_comes_again(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    anchor = anchor_of(attach(tiny_backbone, tiny_recipe.adapter, 0), tiny_backbone)
    seen = [number for step in range(8) for number in anchor._of_step(step)]
    assert [sorted(seen[start : start + 8]) for start in (0, 8, 16)] == [list(range(8))] * 3
    assert seen[:8] != seen[8:16]


def test_an_anchored_training_stays_nearer_to_the_base(tiny_recipe: Recipe, tmp_path: Path) -> None:
    strong = {"kl": {"weight": 50.0, "rows": 4, "length": 32}}
    found = {}
    for name, retention in (("free", {}), ("held", strong)):
        recipe = changed(tiny_recipe, retention, epochs=2.0, learning_rate=5e-3)
        trained = train(recipe, tmp_path / name)
        model = trained.session.model.eval()
        anchor = anchor_of(model, trained.session.backbone)
        with torch.no_grad():
            found[name] = sum(float(part) for part in anchor.losses(0, 0, 1))
        assert trained.result.final_loss < trained.result.first_loss
        assert ("kl" in trained.result.history[-1]) is (name == "held")
    assert found["held"] < 0.5 * found["free"]
