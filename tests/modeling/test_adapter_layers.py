"""LoRA layers in fewer passes compute what PEFT computes, bit for bit."""

from typing import Any

import pytest
import torch

from lora_kit.modeling.adapter_layers import LEAST_ROWS, adapter_layers
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.preflight.traps.specimens import quantized_layer

IN, OUT = 576, 192


def lora_layer(dtype: torch.dtype, quantization: str = "none", **options: Any) -> Any:
    """Return one layer with a LoRA adapter of random weights, in evaluation mode."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    layer: torch.nn.Module = torch.nn.Linear(IN, OUT).to(dtype)
    if quantization != "none":
        layer = quantized_layer(quantization, torch.device("cpu"))
    config = LoraConfig(r=16, target_modules=["0"], **options)
    model = get_peft_model(torch.nn.Sequential(layer), config)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs_for(model: Any, rows: int, dtype: torch.dtype) -> torch.Tensor:
    size = model.base_model.model[0].in_features
    return torch.randn(rows, 1, size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("rows", [LEAST_ROWS, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str
)
@torch.no_grad()
def test_outputs_are_those_of_peft(rows: int, dtype: torch.dtype, options: Any) -> None:
    model = lora_layer(dtype, **options)
    inputs = inputs_for(model, rows, dtype)
    expected = model(inputs)
    with adapter_layers(model):
        assert torch.equal(model(inputs), expected)
        with adapter_disabled(model), adapter_layers(model):
            pass
    assert "forward" not in vars(model.base_model.model[0])


@torch.no_grad()
def test_a_hook_on_a_factor_is_called() -> None:
    """Such as accelerate's, which brings an offloaded weight."""
    model = lora_layer(torch.float32)
    called = []
    factor = model.base_model.model[0].lora_A["default"]
    factor.register_forward_pre_hook(lambda *_: called.append(1))
    with adapter_layers(model):
        model(inputs_for(model, 2, torch.float32))
    assert called == [1]


@torch.no_grad()
def test_a_layer_in_4_bits_and_a_disabled_adapter() -> None:
    model = lora_layer(torch.float32, "nf4")
    inputs = inputs_for(model, 20, torch.float32)
    expected = model(inputs)
    with adapter_layers(model):
        assert torch.equal(model(inputs), expected)
    with adapter_disabled(model):
        base = model(inputs)
        with adapter_layers(model):
            assert torch.equal(model(inputs), base)
    assert not torch.equal(base, expected)


@torch.no_grad()
def test_a_row_does_not_depend_on_how_many_are_computed_with_it() -> None:
    """Rows that have ended leave a generation; those that stay keep their last digit."""
    model = lora_layer(torch.bfloat16)
    inputs = inputs_for(model, LEAST_ROWS, torch.bfloat16)
    with adapter_layers(model):
        together = model(inputs)
        for rows in (1, 5, LEAST_ROWS - 1):
            assert torch.equal(model(inputs[:rows]), together[:rows])


@torch.no_grad()
def test_an_adapter_that_is_disabled_twice_is_enabled_once() -> None:
    model = lora_layer(torch.float32)
    inputs = inputs_for(model, 2, torch.float32)
    adapted = model(inputs)
    with adapter_disabled(model):
        base = model(inputs)
        with adapter_disabled(model):
            assert torch.equal(model(inputs), base)
        assert torch.equal(model(inputs), base)
    assert torch.equal(model(inputs), adapted)
    assert not torch.equal(base, adapted)
