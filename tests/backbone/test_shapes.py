"""A backbone without weights has the modules and sizes of the loaded one."""

from pathlib import Path

import pytest
import torch

from lora_kit.adapter.attach import attach, coverage
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.backbone.shapes import has_weight_files, open_shapes
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError
from tests.two_stacks import WRITERS


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_shapes_are_those_of_the_loaded_model(tiny: Path, quantization: str) -> None:
    spec = BackboneSpec(model=str(tiny), quantization=quantization, dtype="bfloat16")
    loaded, shaped = load(resolve(spec), spec), open_shapes(resolve(spec), spec)
    assert loaded.has_weights
    assert not shaped.has_weights
    assert shaped.spec == loaded.spec
    assert shaped.quantized_modules == loaded.quantized_modules
    described = [
        {name: (tuple(p.shape), p.dtype) for name, p in one.model.named_parameters()}
        for one in (loaded, shaped)
    ]
    assert described[0] == described[1]
    adapted = [attach(one, AdapterSpec(rank=4), seed=0) for one in (loaded, shaped)]
    assert coverage(adapted[0]) == coverage(adapted[1])
    assert {p.device.type for p in adapted[1].parameters()} == {"meta"}
    assert {p.dtype for p in adapted[1].parameters() if p.requires_grad} == {torch.float32}


def test_any_file_of_weights_counts(tmp_path: Path) -> None:
    assert not has_weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert has_weight_files(tmp_path)


def test_an_encoder_decoder_is_refused_without_its_weights(tmp_path: Path) -> None:
    model = WRITERS["t5"](tmp_path / "t5")
    spec = BackboneSpec(model=str(model), quantization="none")
    with pytest.raises(BackboneError, match="an encoder-decoder is planned with its weights"):
        open_shapes(resolve(spec), spec)
