"""Fused products of LoRA layers: the results of PEFT's, and PEFT's way where they cannot be."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lora_kit.adapter import fused_products as module
from lora_kit.adapter.fused_products import fused_products, holds_dequantized
from lora_kit.backbone.load import guard_quantized_modules

IDS = torch.arange(12).view(2, 6)


def model_of(bias: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attention_bias=bias,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **options)
    adapted = get_peft_model(LlamaForCausalLM(config), lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.train()


def in_4_bits(model: Any, dtype: torch.dtype) -> Any:
    from bitsandbytes.nn import Linear4bit

    for layer in [one for one in model.modules() if hasattr(one, "lora_A")]:
        dense = layer.base_layer
        quantized = Linear4bit(
            dense.in_features, dense.out_features, bias=False, compute_dtype=dtype,
            quant_type="nf4",
        )  # fmt: skip
        quantized.load_state_dict(dense.state_dict())
        layer.base_layer = quantized.to("cpu").requires_grad_(False)
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    list(guard_quantized_modules(model))
    return model


def learned(model: Any, half: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of all factors, flat."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.cat([p.grad.flatten() for p in trained])
    model.zero_grad()
    return loss.detach(), gradient


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    original = module._LoraProduct.apply

    def count(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module._LoraProduct, "apply", count)
    return calls


@pytest.mark.parametrize("bias", [False, True])
def test_losses_and_gradients_are_those_of_peft(bias: bool, fused_calls: list[Any]) -> None:
    model = model_of(bias)
    loss, gradient = learned(model)
    with fused_products(model):
        fused_loss, fused_gradient = learned(model)
    assert len(fused_calls) == 2 * 7
    torch.testing.assert_close(fused_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused_gradient, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("held", [True, False])
def test_4_bit_weights_give_the_results_of_peft(
    held: bool, fused_calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_SHARE", 1 / 32 if held else 0)
    model = in_4_bits(model_of(), torch.float32)
    loss, gradient = learned(model)
    with fused_products(model):
        fused_loss, fused_gradient = learned(model)
    assert fused_calls
    torch.testing.assert_close(fused_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused_gradient, gradient, rtol=1e-4, atol=1e-7)


def test_holding_dequantized_weights_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for share in (1 / 32, 0):
        monkeypatch.setattr(module, "HELD_SHARE", share)
        model = in_4_bits(model_of(), torch.bfloat16)
        with fused_products(model):
            found.append(learned(model, half=True))
    (loss, gradient), (other_loss, other_gradient) = found
    assert loss == other_loss
    assert torch.equal(gradient, other_gradient)


def test_bfloat16_is_as_near_to_float32_as_peft_is(fused_calls: list[Any]) -> None:
    model = model_of()
    _, exact = learned(model)
    half = copy.deepcopy(model)
    for name, parameter in half.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    _, gradient = learned(half, half=True)
    with fused_products(half):
        _, fused = learned(half, half=True)
    assert fused_calls
    assert (fused - exact).norm() < 1.5 * (gradient - exact).norm()


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}], ids=str
)
def test_other_layers_take_the_way_of_peft(options: Any, fused_calls: list[Any]) -> None:
    model = model_of(**options)
    torch.manual_seed(1)
    loss, gradient = learned(model)
    torch.manual_seed(1)
    with fused_products(model):
        fused_loss, fused_gradient = learned(model)
    assert not fused_calls
    assert fused_loss == loss
    assert torch.equal(fused_gradient, gradient)


def test_a_disabled_adapter_a_hook_and_no_gradients_take_the_way_of_peft(
    fused_calls: list[Any],
) -> None:
    model = model_of()
    with fused_products(model):
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
        with model.disable_adapter():
            model(input_ids=IDS, use_cache=False)
        for layer in [one for one in model.modules() if hasattr(one, "lora_A")]:
            layer.lora_A["default"].register_forward_hook(lambda *_: None)
        model(input_ids=IDS, use_cache=False)
    assert not fused_calls


def test_layers_are_as_before_after_training() -> None:
    model = model_of()
    before = {name: dict(vars(one)) for name, one in model.named_modules()}
    with pytest.raises(KeyboardInterrupt), fused_products(model):
        raise KeyboardInterrupt
    assert all("forward" not in vars(one) for one in model.modules())
    assert {name: vars(one).keys() for name, one in model.named_modules()} == {
        name: found.keys() for name, found in before.items()
    }


def test_only_small_models_are_held_dequantized() -> None:
    assert holds_dequantized(1_000_000, torch.bfloat16)
    assert not holds_dequantized(0, torch.bfloat16)
    assert not holds_dequantized(10**12, torch.bfloat16)
