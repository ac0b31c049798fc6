"""The scale inside an adapter: the written adapter is the measured one, nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_kit.adapter.attach import attach_saved, wrap_with_adapter
from lora_kit.adapter.saved import adapter_sha256, save_adapter
from lora_kit.backbone import load as backbones
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.rescaling.scale import (
    TRAINED,
    AdapterScale,
    candidate_scales,
    require_linear,
    require_thirds,
    scaled_adapter,
)
from lora_kit.runtime.errors import AdapterError, RecipeError

IDS = torch.tensor([[1, 50, 600, 3000, 80]])


def again(tiny: Path) -> Backbone:
    spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    return backbones.load(resolve(spec), spec)


def adapted(backbone: Backbone, directory: Path, **options: Any) -> Any:
    """The backbone with an adapter that does something, read back from disk."""
    torch.manual_seed(0)
    model = wrap_with_adapter(backbone.model, AdapterSpec(rank=4, alpha=8))
    if options:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
        model = get_peft_model(model.unload(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    save_adapter(model, backbone, directory)
    return attach_saved(Backbone(**{**vars(backbone), "model": model.unload()}), directory)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["q_proj"], "use_rslora": True},
        {"target_modules": ["embed_tokens", "v_proj"]},
    ],
    ids=["lora", "rslora", "embedding"],
)
def test_the_written_adapter_is_the_scaled_one(
    tiny: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    backbone = again(tiny)
    model = adapted(backbone, tmp_path / "adapter", **options)
    require_linear(tmp_path / "adapter")
    plain = logits(model)
    with scaled_adapter(model, AdapterScale.uniform(0.5)):
        measured = logits(model)
        save_adapter(model, backbone, tmp_path / "half")
    assert not torch.equal(measured, plain)
    assert torch.equal(logits(model), plain)  # as it was
    reloaded = attach_saved(again(tiny), tmp_path / "half")
    assert torch.equal(logits(reloaded), measured)
    with adapter_disabled(model):
        base = logits(model)
    with adapter_disabled(reloaded):
        assert torch.equal(logits(reloaded), base)
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "half")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        factor = 0.5 if "_B" in name else 1.0
        assert torch.equal(after[name], factor * tensor), name


def test_half_of_the_factor_is_half_of_the_update(tiny: Path, tmp_path: Path) -> None:
    """A method for which this fails has to be refused."""
    model = adapted(again(tiny), tmp_path / "adapter")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    whole = layer.get_delta_weight("default")
    with scaled_adapter(model, AdapterScale.uniform(0.5)):
        torch.testing.assert_close(layer.get_delta_weight("default"), 0.5 * whole)


def test_scale_one_is_the_adapter_itself_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    backbone = again(tiny)
    model = adapted(backbone, tmp_path / "adapter")
    plain = logits(model)
    with scaled_adapter(model, TRAINED):
        assert torch.equal(logits(model), plain)
        save_adapter(model, backbone, tmp_path / "one")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("adapter", "one")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert adapter_sha256(tmp_path / "one") == adapter_sha256(tmp_path / "adapter")


def test_the_model_is_as_it_was_after_an_error_and_in_inference_mode(
    tiny: Path, tmp_path: Path
) -> None:
    model = adapted(again(tiny), tmp_path / "adapter")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with (
        torch.inference_mode(),
        pytest.raises(KeyError),
        scaled_adapter(model, AdapterScale.uniform(2.0)),
    ):
        raise KeyError
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert not parameter.is_inference()


def deep(tmp_path: Path) -> Any:
    """An adapted model of seven blocks: thirds of three, two and two."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=7,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return wrap_with_adapter(LlamaForCausalLM(config), AdapterSpec(rank=2, alpha=2))


def test_a_third_is_scaled_alone(tmp_path: Path) -> None:
    model = deep(tmp_path)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1.0)
    with scaled_adapter(model, AdapterScale(0.0, 1.0, 0.25)):
        found = {
            int(name.split("layers.")[1].split(".")[0]): float(parameter.detach().mean())
            for name, parameter in model.named_parameters()
            if "lora_B" in name
        }
    assert found == {0: 0.0, 1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0, 5: 0.25, 6: 0.25}


def test_thirds_are_refused_where_there_are_none(tiny: Path, tmp_path: Path) -> None:
    model = adapted(again(tiny), tmp_path / "adapter")
    with pytest.raises(
        AdapterError, match=r"--by-layer: too few decoder blocks for three thirds \(got 2\)"
    ):
        require_thirds(model)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    headed = get_peft_model(deep(tmp_path).unload(), config)
    with pytest.raises(AdapterError, match=r"in none of the 7 decoder blocks \(got .*lm_head"):
        require_thirds(headed)


def test_the_candidate_scales() -> None:
    whole = candidate_scales((0.5, 1.25, 0.5, 0.0), by_layer=False)
    assert [one.name for one in whole] == ["0.5", "1", "1.25"]
    thirds = candidate_scales((0.0, 0.5), by_layer=True)
    assert [one.name for one in thirds] == [
        *("0.5", "1", "early 0", "early 0.5", "middle 0", "middle 0.5", "late 0", "late 0.5")
    ]
    assert thirds[4].parts == (1.0, 0.0, 1.0)
    assert AdapterScale(0.5, 1.0, 2.0).name == "early 0.5, late 2"
    reduced = candidate_scales((0.5, 0.0), by_layer=True, intruders=(0.0, 1.0, 0.75, 0.0))
    assert [one.name for one in reduced if one.is_uniform] == [
        *("0.5", "1", "0.5, intruders 0.75", "1, intruders 0.75"),
        *("0.5, intruders 0", "1, intruders 0"),
    ]
    assert len(reduced) == 12  # thirds keep the intruder dimensions


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(
        RecipeError, match=rf"--scales: must be finite and not negative \(got {scale:g}\)"
    ):
        candidate_scales((scale,), by_layer=False)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora: makes the adapter more than a low-rank update"),
    "ia3": ({"peft_type": "IA3"}, r"peft_type: not LoRA \(got IA3\)"),
    "modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save: makes the adapter more"),
    "tokens": ({"trainable_token_indices": [5]}, "trainable_token_indices: makes the adapter more"),
    "residue": (
        {"init_lora_weights": "pissa"},
        r"init_lora_weights: changes the base weights.*\(got 'pissa'\)",
    ),
    "unknown": ({"use_magic": True}, r"use_magic: makes the adapter more .*\(got True\)"),
}


def on_disk(directory: Path, tensor: str = "lora_B.weight", **options: Any) -> Path:
    """The files of a plain LoRA, with an option set or a tensor of another name."""
    directory.mkdir()
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": True}
    (directory / "adapter_config.json").write_text(json.dumps(plain | options))
    names = ("base_model.model.q_proj.lora_A.weight", f"base_model.model.q_proj.{tensor}")
    path = directory / "adapter_model.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, path, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_are_not_linear_in_lora_b_are_refused_with_the_reason(
    tmp_path: Path, case: str
) -> None:
    options, reason = REFUSED[case]
    require_linear(on_disk(tmp_path / "plain", use_magic=""))
    with pytest.raises(AdapterError, match=reason):
        require_linear(on_disk(tmp_path / "other", **options))


def test_a_tensor_that_is_no_factor_is_refused_by_name(tmp_path: Path) -> None:
    """PEFT writes resized embeddings like this, without a word in the configuration."""
    with pytest.raises(AdapterError, match=r"1 tensors are no LoRA factors .*q_proj\.weight"):
        require_linear(on_disk(tmp_path / "adapter", "weight"))
