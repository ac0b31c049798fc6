import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from lora_kit.adapter.attach import wrap_with_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec

IDS = torch.arange(64).reshape(2, 32)
EQUAL: dict[str, dict[str, Any]] = {
    "lora": {},
    "adalora": {"method": "adalora"},
    "bias": {"options": {"lora_bias": True}},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "a head in full": {"options": {"modules_to_save": ["lm_head"]}},
    "tokens": {"options": {"trainable_token_indices": [3, 4]}},
}
KEPT: dict[str, dict[str, Any]] = {
    "dora": {"options": {"use_dora": True}},
    "dropout": {"dropout": 0.1},
}


def model(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype).requires_grad_(False)


def quantized(tiny: Path, dtype: torch.dtype, quantization: str) -> Any:
    spec = BackboneSpec.model_validate(
        {"model": str(tiny), "quantization": quantization, "dtype": str(dtype)[6:]}
    )
    return load(resolve(spec), spec).model


def loss_and_gradients(
    adapted: torch.nn.Module, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    adapted.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        loss = adapted(input_ids=IDS, labels=IDS).loss
    loss.backward()
    trained = [(n, p.grad) for n, p in adapted.named_parameters() if p.requires_grad]
    return loss.detach(), {n: g.clone() for n, g in trained if g is not None}


def perturbed(spec: dict[str, Any], base: Any) -> Any:
    adapted = wrap_with_adapter(base, AdapterSpec.model_validate(spec))
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return adapted.train()


def with_casts(adapted: Any) -> Any:
    """Return a copy of the model in which PEFT casts as by default."""
    casting = copy.deepcopy(adapted)
    for module in casting.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = True
    return casting


def held_bytes(adapted: torch.nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of the distinct activations that the backward pass needs."""
    held: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in adapted.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype),
    ):
        loss = adapted(input_ids=IDS, labels=IDS).loss
    del loss
    return sum(held.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*EQUAL, *KEPT, "nf4", "int8"])
def test_losses_and_gradients_are_those_with_the_cast(
    name: str, dtype: torch.dtype, tiny: Path
) -> None:
    base = quantized(tiny, dtype, name) if name in ("nf4", "int8") else model(dtype)
    adapted = perturbed((EQUAL | KEPT).get(name, {}), base)
    loss, gradients = loss_and_gradients(adapted, dtype)
    expected, wanted = loss_and_gradients(with_casts(adapted), dtype)
    assert torch.equal(loss, expected)
    assert wanted.keys() == gradients.keys()
    assert all(torch.equal(gradients[one], wanted[one]) for one in wanted)
    assert any(bool(one.any()) for one in wanted.values())


def test_float32_inputs_are_no_longer_held() -> None:
    adapted = perturbed({}, model(torch.bfloat16))
    assert held_bytes(adapted, torch.bfloat16) < held_bytes(with_casts(adapted), torch.bfloat16)


@pytest.mark.parametrize("name", KEPT)
def test_a_layer_that_computes_with_its_input_keeps_the_cast(name: str) -> None:
    """Without it, the loss is another one."""
    adapted = perturbed(KEPT[name], model(torch.bfloat16))
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert {module.cast_input_dtype_enabled for module in layers} == {True}
    expected, _ = loss_and_gradients(adapted, torch.bfloat16)
    for module in layers:
        module.cast_input_dtype_enabled = False
    loss, _ = loss_and_gradients(adapted, torch.bfloat16)
    assert not torch.equal(loss, expected)


def test_without_autocast_inputs_are_cast_as_before() -> None:
    """A product of bfloat16 inputs and float32 factors would be refused."""
    adapted = perturbed({}, model(torch.bfloat16))
    with torch.no_grad():
        logits = adapted(input_ids=IDS).logits
        assert torch.equal(logits, with_casts(adapted)(input_ids=IDS).logits)
    single = perturbed({}, model(torch.float32))
    loss, _ = loss_and_gradients(single, torch.float32)
    assert torch.equal(loss, loss_and_gradients(with_casts(single), torch.float32)[0])
