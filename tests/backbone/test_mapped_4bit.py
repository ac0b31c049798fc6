"""4-bit layers that stay mapped from the model's files until they are quantized one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import GPT2Config, GPT2LMHeadModel

from lora_kit.adapter.attach import attach, coverage
from lora_kit.backbone import load as loading
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, quantization_config
from lora_kit.backbone.mapped_4bit import (
    MappedLinear4bit,
    map_linear_layers,
    mapped_layers,
    quantize_mapped,
)
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.launch import Launch

FSDP = Launch(asked=2, fsdp=True, fsdp_version=2, processes=2, kind="FSDP")
MAPS = Path("/proc/self/maps")
CPU = torch.device("cpu")


def load(directory: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch, **spec: Any) -> Backbone:
    monkeypatch.setattr(loading, "current_launch", lambda: launch)
    chosen = BackboneSpec.model_validate({"model": str(directory), "dtype": "bfloat16"} | spec)
    return loading.load(resolve(chosen), chosen)


def layers(model: torch.nn.Module) -> dict[str, Linear4bit]:
    return {name: one for name, one in model.named_modules() if isinstance(one, Linear4bit)}


def same_storage(one: Linear4bit, other: Linear4bit) -> bool:
    """Return true if packed weights and all constants of the quantization are equal."""
    states = [layer.weight.quant_state.as_dict(packed=True) for layer in (one, other)]
    return (
        type(one) is type(other) is Linear4bit
        and torch.equal(one.weight.data, other.weight.data)
        and states[0].keys() == states[1].keys()
        and all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        and one.quant_state is one.weight.quant_state
    )


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_layers_quantized_later_are_those_that_transformers_quantizes(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    whole = load(tiny, monkeypatch, Launch(), quantization=quantization)
    mapped = load(tiny, monkeypatch, FSDP, quantization=quantization)
    assert mapped.quantized_modules == whole.quantized_modules == tuple(layers(mapped.model))
    assert mapped.fingerprint == whole.fingerprint
    assert all(type(one) is MappedLinear4bit for one in layers(mapped.model).values())
    ids = torch.arange(8)[None]
    before = mapped.model(ids).logits
    quantize_mapped(mapped.model, CPU)
    assert not list(mapped_layers(mapped.model))
    found, expected = layers(mapped.model), layers(whole.model)
    assert all(same_storage(found[name], layer) for name, layer in expected.items())
    assert torch.equal(before, whole.model(ids).logits)
    assert torch.equal(mapped.model(ids).logits, whole.model(ids).logits)


@pytest.mark.skipif(not MAPS.is_file(), reason="reads Linux's table of mapped files")
def test_weights_stay_those_of_the_mapped_file_until_they_are_quantized(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(tiny, monkeypatch, FSDP, quantization="nf4", dtype="float32")
    mapped = [layer for _, layer in mapped_layers(backbone.model)]
    assert len(mapped) == 14
    assert all(is_in_file(layer.weight, "model.safetensors") for layer in mapped)
    backbone.model.to(CPU)
    assert all(is_in_file(layer.weight, "model.safetensors") for layer in mapped)
    quantize_mapped(backbone.model.model.layers[0], CPU)
    assert [is_in_file(layer.weight, "model.safetensors") for layer in mapped] == [False] * 7 + [
        True
    ] * 7


def is_in_file(tensor: torch.Tensor, name: str) -> bool:
    """Return true if a tensor's memory is a file mapped into this process."""
    for line in MAPS.read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= tensor.data_ptr() < int(end, 16):
            return line.endswith(name)
    return False


def test_an_adapter_counts_the_same_parameters(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [
        coverage(attach(load(tiny, monkeypatch, launch, quantization="nf4"), AdapterSpec(), 0))
        for launch in (Launch(), FSDP)
    ]
    assert counts[0].total_parameters == counts[1].total_parameters
    assert counts[0].trainable_parameters == counts[1].trainable_parameters


def test_transposed_layers_are_turned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GPT-2 stores its matrices as (in, out)."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=64, vocab_size=64)).eval()
    model.save_pretrained(tmp_path)
    spec = BackboneSpec(model="m", quantization="nf4", dtype="float32")
    config = quantization_config(spec, torch.float32)
    whole = GPT2LMHeadModel.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    map_linear_layers(model, config)
    quantize_mapped(model, CPU)
    found, expected = layers(model), layers(whole)
    assert found.keys() == expected.keys()
    assert all(same_storage(found[name], layer) for name, layer in expected.items())
    assert all(torch.equal(found[name].bias, layer.bias) for name, layer in expected.items())


def test_files_that_are_quantized_already_are_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backbone = load(tiny, monkeypatch, Launch(), quantization="nf4")
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="quantized already"):
        load(tmp_path, monkeypatch, FSDP, quantization="nf4")
