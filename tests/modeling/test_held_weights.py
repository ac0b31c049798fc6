"""Weights that are held for an evaluation give the same numbers, and are let go."""

from typing import Any

import pytest
import torch

from lora_kit.backbone import load as backbones
from lora_kit.backbone.load import Backbone
from lora_kit.modeling import held_weights as module
from lora_kit.modeling.held_weights import held_weights


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_4_bit_model_computes_the_same_bits(
    loaded_tiny: Backbone, quantization: Any, dtype: str
) -> None:
    spec = loaded_tiny.spec.model_copy(
        update={"quantization": quantization, "dtype": dtype, "attention": "auto"}
    )
    model: Any = backbones.load(loaded_tiny.files, spec).model
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with held_weights(model) as held:
            assert held.dense
            assert torch.equal(model(ids).logits, expected)
            packed = dict(held.dense)
            with held_weights(model) as inner:
                assert inner is held
        assert torch.equal(model(ids).logits, expected)
    assert all("forward" not in layer.__dict__ for layer in packed)


def test_training_goes_on_with_the_4_bit_weights(real_backbone: Backbone) -> None:
    model: Any = real_backbone.model
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with held_weights(model) as held, torch.no_grad():
            assert len(held.dense) == len(real_backbone.quantized_modules)
            assert torch.equal(model(ids).logits, expected)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad is not None


def test_weights_stay_in_4_bits_without_memory(
    real_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda _: 100_000_000)
    with held_weights(real_backbone.model) as held:
        assert not held.dense
        layer = real_backbone.model.get_submodule(real_backbone.quantized_modules[0])
        assert held.packed(layer) is None


def test_a_weight_that_changed_is_packed_anew() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 256))
    layer = model[0]
    with held_weights(model) as held, torch.no_grad():
        first = held.packed(layer)
        assert held.packed(layer) is first
        layer.weight.mul_(2)
        assert held.packed(layer) is not first
