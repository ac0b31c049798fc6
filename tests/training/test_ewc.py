"""Elastic weight consolidation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.supervision import Example
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.pipeline import train
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.method_checks import refuse_parameters_outside_ewc
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import EwcSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import Launch
from lora_kit.training.retention import ewc
from lora_kit.training.retention.ewc import (
    EwcPenalty,
    empirical_fisher,
    lora_updates,
)
from lora_kit.training.retention.texts import read_retention_texts
from tests.training.keeping import SPEC, changed, disturbed, gradient


def test_the_fisher_information_is_the_squared_gradient_of_each_text(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    texts = read_retention_texts(SPEC, tiny_backbone.tokenizer, 0, "retention.ewc", limit=3)
    layers = {name: update.base for name, update in lora_updates(model).items()}
    found = empirical_fisher(model, tiny_backbone, texts.examples, layers)
    assert set(found) == set(layers)
    name = next(name for name in layers if "layers.0.self_attn.v_proj" in name)
    weight = layers[name].weight.requires_grad_()
    expected = torch.zeros_like(weight)
    with adapter_disabled(model):
        for example in texts.examples:
            ids = torch.tensor([example.input_ids])
            logits = model(input_ids=ids).logits[0, :-1]
            cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
            assert weight.grad is not None
            expected += weight.grad**2 / (3 * (ids.shape[1] - 1))
            weight.grad = None
    torch.testing.assert_close(found[name].float(), expected, rtol=0.02, atol=1e-8)


def by_autograd(
    model: Any, weight: torch.nn.Parameter, examples: Sequence[Example]
) -> torch.Tensor:
    """Mean over texts of the squared gradient of a weight, per token, by autograd alone."""
    expected = torch.zeros_like(weight)
    with adapter_disabled(model):
        for example in examples:
            ids = torch.tensor([example.input_ids])
            logits = model(input_ids=ids).logits[0, :-1]
            loss = cross_entropy(logits, ids[0, 1:], reduction="sum")
            (slope,) = torch.autograd.grad(loss, weight)
            expected += slope**2 / (len(examples) * (ids.shape[1] - 1))
    return expected


@pytest.mark.parametrize("shared", ["block", "module"])
def test_a_layer_that_is_used_several_times_has_the_gradient_of_all_uses(
    tiny_backbone: Backbone, tiny_recipe: Recipe, shared: str
) -> None:
    layers = tiny_backbone.model.model.layers
    # The uses of a module have one number, and so one place in a cache.
    tiny_backbone.model.config.use_cache = False
    if shared == "block":
        # A recursive model: each block is used twice.
        layers.extend(list(layers))
        tiny_backbone.model.config.num_hidden_layers = len(layers)
    else:
        layers[1].self_attn = layers[0].self_attn
    model = disturbed(tiny_backbone, tiny_recipe)
    texts = read_retention_texts(SPEC, tiny_backbone.tokenizer, 0, "retention.ewc", limit=3)
    bases = {name: update.base for name, update in lora_updates(model).items()}
    found = empirical_fisher(model, tiny_backbone, texts.examples, bases)
    name = next(name for name in bases if "layers.0.self_attn.v_proj" in name)
    expected = by_autograd(model, bases[name].weight.requires_grad_(), texts.examples)
    torch.testing.assert_close(found[name].float(), expected, rtol=0.02, atol=1e-8)


def test_layers_that_share_a_tensor_have_the_gradient_of_their_own_update(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    layers = tiny_backbone.model.model.layers
    layers[1].self_attn.v_proj.weight = layers[0].self_attn.v_proj.weight
    model = disturbed(tiny_backbone, tiny_recipe)
    texts = read_retention_texts(SPEC, tiny_backbone.tokenizer, 0, "retention.ewc", limit=3)
    bases = {name: update.base for name, update in lora_updates(model).items()}
    found = empirical_fisher(model, tiny_backbone, texts.examples, bases)
    for number in (0, 1):
        name = next(name for name in bases if f"layers.{number}.self_attn.v_proj" in name)
        # The same values, but a leaf of its own: the place of this layer's update alone.
        bases[name].weight = torch.nn.Parameter(bases[name].weight.detach().clone())
        expected = by_autograd(model, bases[name].weight, texts.examples)
        torch.testing.assert_close(found[name].float(), expected, rtol=0.02, atol=1e-8)


def test_the_added_gradient_is_the_gradient_of_the_penalty(
    tiny_backbone: Backbone, tiny_recipe: Recipe
) -> None:
    model = disturbed(tiny_backbone, tiny_recipe)
    texts = read_retention_texts(SPEC, tiny_backbone.tokenizer, 0, "retention.ewc", limit=3)
    penalty = EwcPenalty(
        model, tiny_backbone, texts.examples, EwcSpec.model_validate({"weight": 7.0})
    )
    nothing: Any = None
    penalty.on_train_begin(nothing, nothing, nothing)
    assert all(p.grad is None for p in model.parameters())
    penalty.modify_gradients(nothing, 4.0)
    found = gradient(model) / 4.0
    for name, update in lora_updates(model).items():
        moved = update.scaling * update.lora_b @ update.lora_a
        (3.5 * (penalty._fisher[name].float() * moved**2).sum()).backward()
    torch.testing.assert_close(found, gradient(model), rtol=1e-4, atol=1e-9)
    assert found.abs().max() > 0


def test_layers_that_the_texts_do_not_use_are_not_penalised(
    tiny_backbone: Backbone,
    tiny_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As experts that no token is sent to."""
    model = disturbed(tiny_backbone, tiny_recipe)
    texts = read_retention_texts(SPEC, tiny_backbone.tokenizer, 0, "retention.ewc", limit=2)

    def without_one(*arguments: Any) -> Any:
        found = empirical_fisher(*arguments)
        found.pop(min(found))
        return found

    monkeypatch.setattr(ewc, "empirical_fisher", without_one)
    penalty = EwcPenalty(model, tiny_backbone, texts.examples, EwcSpec())
    nothing: Any = None
    penalty.on_train_begin(nothing, nothing, nothing)
    updates = lora_updates(model)
    assert f"1 of {len(updates)} layers are not used by the texts" in capsys.readouterr().err
    penalty.modify_gradients(nothing, 1.0)
    unused = updates[min(updates)]
    assert unused.lora_a.grad is None
    assert sum(update.lora_a.grad is not None for update in updates.values()) == len(updates) - 1


@pytest.mark.parametrize(
    ("adapter", "named"),
    [
        ({"options": {"modules_to_save": ["lm_head"]}}, "lm_head"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "lora_embedding_A"),
    ],
)
def test_trained_weights_outside_the_penalty_are_refused(
    tiny_backbone: Backbone, tiny_recipe: Recipe, adapter: dict[str, Any], named: str
) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document |= {"retention": {"ewc": {}}, "adapter": adapter}
    recipe = Recipe.model_validate(document)
    model = attach(tiny_backbone, recipe.adapter, 0)
    with pytest.raises(TrainingError, match=rf"retention\.ewc: penalises .*{named}.* is trained"):
        refuse_parameters_outside_ewc(
            PreflightContext(recipe, Launch(), backbone=tiny_backbone, model=model)
        )


@pytest.mark.parametrize("adapter", [{"method": "ia3"}, {"options": {"use_dora": True}}])
def test_ewc_supports_plain_lora_only(tiny_recipe: Recipe, adapter: dict[str, Any]) -> None:
    document = tiny_recipe.model_dump(mode="json")
    document |= {"retention": {"ewc": {}}, "adapter": adapter}
    with pytest.raises(ValueError, match=r"retention\.ewc: penalises the product"):
        Recipe.model_validate(document)


def test_training_with_ewc_moves_the_weights_less(tiny_recipe: Recipe, tmp_path: Path) -> None:
    strong = {"ewc": {"weight": 1e8, "rows": 4, "length": 32}}
    moved = {}
    for name, retention in (("free", {}), ("held", strong)):
        model = train(changed(tiny_recipe, retention, epochs=2.0), tmp_path / name).session.model
        updates = lora_updates(model).values()
        moved[name] = sum(float((one.lora_b @ one.lora_a).norm()) for one in updates)
    assert moved["held"] < 0.7 * moved["free"]


def test_the_penalty_is_clipped_with_the_loss(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """A penalty added after clipping would outweigh the loss and be missing from the norm."""
    norms = {}
    for weight in (1e-3, 1e8):
        retention = {"ewc": {"weight": weight, "rows": 4, "length": 32}}
        recipe = changed(tiny_recipe, retention, epochs=2.0)
        history = train(recipe, tmp_path / str(weight)).result.history
        norms[weight] = [line["grad_norm"] for line in history if "grad_norm" in line]
    assert norms[1e8][0] == pytest.approx(norms[1e-3][0])  # nothing has moved yet
    assert norms[1e8][-1] > 10 * norms[1e-3][-1]
