import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach, attach_saved, coverage
from lora_kit.adapter.saved import adapter_sha256, save_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import AdapterError


def test_all_linear_covers_every_quantized_layer_in_float32(real_backbone: Backbone) -> None:
    model = attach(real_backbone, AdapterSpec(), seed=0)
    result = {one.module_class: (one.adapted, one.total) for one in coverage(model).classes}
    assert result["Linear4bit"] == (210, 210)
    assert result["Linear"] == (0, 1)  # the output head, tied to the embedding
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_adapters_of_a_bfloat16_backbone_have_float32_masters(tiny: Path) -> None:
    spec = BackboneSpec(model=str(tiny), quantization="nf4", dtype="bfloat16")
    model = attach(load(resolve(spec), spec), AdapterSpec(rank=2), seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_one_misspelt_target_among_good_ones_is_refused(tiny_backbone: Backbone) -> None:
    spec = AdapterSpec(target_modules=["q_proj", "v_porj"])
    with pytest.raises(AdapterError, match=r"no module is called v_porj.*q_proj"):
        attach(tiny_backbone, spec, seed=0)


def test_the_same_seed_gives_the_same_weights_and_zero_is_a_seed(tiny: Path) -> None:
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")

    def first_weight(seed: int) -> torch.Tensor:
        model = attach(load(resolve(spec), spec), AdapterSpec(rank=2), seed)
        return next(p for p in model.parameters() if p.requires_grad).detach().clone()

    torch.manual_seed(99)
    one = first_weight(0)
    torch.manual_seed(7)
    assert torch.equal(one, first_weight(0))
    assert not torch.equal(one, first_weight(1))


def test_a_disabled_adapter_is_enabled_again_after_an_exception(tiny_backbone: Backbone) -> None:
    model = attach(tiny_backbone, AdapterSpec(rank=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        on = model(ids).logits
        with adapter_disabled(model):
            off = model(ids).logits
        with pytest.raises(ZeroDivisionError), adapter_disabled(model):
            _ = 1 / 0
        assert not torch.allclose(on, off)
        assert torch.equal(on, model(ids).logits)


def test_a_saved_adapter_names_its_backbone_and_no_local_path(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    model = attach(tiny_backbone, AdapterSpec(rank=2), seed=0)
    save_adapter(model, tiny_backbone, tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "backbone.json"}


def test_an_adapter_of_another_shape_is_refused(
    tiny_backbone: Backbone, real_backbone: Backbone, tmp_path: Path
) -> None:
    save_adapter(attach(tiny_backbone, AdapterSpec(rank=2), 0), tiny_backbone, tmp_path / "a")
    with pytest.raises(AdapterError, match="does not fit"):
        attach_saved(real_backbone, tmp_path / "a")


def test_a_directory_without_an_adapter_says_what_one_has(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        attach_saved(tiny_backbone, tmp_path)


def test_a_broken_configuration_is_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    save_adapter(attach(tiny_backbone, AdapterSpec(rank=2), 0), tiny_backbone, tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="cannot be read as JSON"):
        attach_saved(tiny_backbone, tmp_path / "a")


def test_the_same_weights_under_another_alpha_are_another_adapter(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    attach(tiny_backbone, AdapterSpec(rank=4), seed=0).save_pretrained(tmp_path)
    before = adapter_sha256(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"revision": "elsewhere"}))
    assert adapter_sha256(tmp_path) == before
    path.write_text(json.dumps(config | {"lora_alpha": 999}))
    assert adapter_sha256(tmp_path) != before


@pytest.mark.parametrize("spec", [{}, {"method": "prompt_tuning", "rank": None, "alpha": None}])
def test_a_saved_adapter_is_read_to_the_device_of_its_backbone(
    tiny: Path,
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: dict[str, Any],
) -> None:
    """PEFT's own choice is the first GPU of the machine, here one that is not there."""
    backbone = load(resolve(tiny_backbone.spec), tiny_backbone.spec)
    save_adapter(attach(backbone, AdapterSpec.model_validate(spec), seed=0), backbone, tmp_path)
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: "cuda:7")
    loaded = attach_saved(tiny_backbone, tmp_path)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}


def test_a_frozen_backbone_keeps_its_mode(tiny_backbone: Backbone) -> None:
    before = {name: module.training for name, module in tiny_backbone.model.named_modules()}
    attach(tiny_backbone, AdapterSpec(rank=2), seed=0)
    after = {name: module.training for name, module in tiny_backbone.model.named_modules()}
    assert {name: after[name] for name in before if not name.endswith("_proj")} == {
        name: mode for name, mode in before.items() if not name.endswith("_proj")
    }
