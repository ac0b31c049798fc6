import json
import re
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.merging.dequantize import dequantized
from lora_kit.merging.plan import MergePlan
from lora_kit.merging.stream import merge_stream
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import MergeError


def trained(backbone: Backbone, directory: Path, std: float = 0.02, **options: Any) -> Any:
    """An attached adapter that does something, saved."""
    model = attach(backbone, AdapterSpec(rank=4, alpha=8, **options), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    save_adapter(model, backbone, directory)
    return model.eval()


def plan_of(backbone: Backbone, adapter: Path, **changes: Any) -> MergePlan:
    fields: dict[str, Any] = {
        "base": backbone.files.directory,
        "adapter": adapter,
        "quantization": backbone.spec.quantization,
        "dtype": backbone.spec.dtype,
        "quantized_modules": backbone.quantized_modules,
        "into": "dequantized",
        "stored_dtype": backbone.spec.dtype,
        "shard_bytes": 10**9,
        "stop_token_ids": (2,),
    }
    return MergePlan(**(fields | changes))


def quantized(tiny: Path, quantization: str, dtype: str = "float32") -> Backbone:
    spec = BackboneSpec.model_validate(
        {"model": str(tiny), "quantization": quantization, "dtype": dtype}
    )
    return load(resolve(spec), spec)


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dequantized_weights_are_those_that_the_layers_multiply_with(
    tiny: Path, quantization: str, dtype: str
) -> None:
    backbone = quantized(tiny, quantization, dtype)
    original = load_file(tiny / "model.safetensors")
    for name in backbone.quantized_modules:
        weight = backbone.model.get_submodule(name).weight
        used = bnb.dequantize_4bit(weight.data, weight.quant_state)
        again = dequantized(original[f"{name}.weight"].to(used.dtype), quantization)
        assert torch.equal(used, again), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_tensor_is_the_float32_sum_rounded_once(
    tiny: Path, tmp_path: Path, dtype: str
) -> None:
    backbone = quantized(tiny, "nf4", dtype)
    model = trained(backbone, tmp_path / "adapter")
    result = merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert result.merged == result.dequantized == 14
    for name in backbone.quantized_modules:
        layer = model.get_submodule(f"base_model.model.{name}")
        weight = layer.base_layer.weight
        base = bnb.dequantize_4bit(weight.data, weight.quant_state).float()
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = (base + (b.float() @ a.float()) * 2.0).to(getattr(torch, dtype))
        assert torch.equal(merged[f"{name}.weight"], expected), name


@pytest.mark.parametrize("shard_bytes", [100_000, 10**9])
def test_shards_hold_every_tensor_once(tiny: Path, tmp_path: Path, shard_bytes: int) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    plan = plan_of(backbone, tmp_path / "adapter", shard_bytes=shard_bytes)
    result = merge_stream(plan, tmp_path / "merged")
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    keys = []
    for file in files:
        with safe_open(file, "pt") as stream:
            keys += list(stream.keys())
    with safe_open(tiny / "model.safetensors", "pt") as stream:
        assert sorted(keys) == sorted(stream.keys())
    assert len(keys) == result.tensors
    if shard_bytes < 10**9:
        assert len(files) > 3
        index = json.loads((tmp_path / "merged" / SAFETENSORS_INDEX_FILE).read_text())
        assert set(index["weight_map"]) == set(keys)
        assert index["metadata"]["total_size"] == result.weight_bytes


def test_a_merge_does_not_take_the_place_of_other_files(tiny: Path, tmp_path: Path) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("years")
    with pytest.raises(MergeError, match=r"already exists .* not empty"):
        merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "documents")
    assert (tmp_path / "documents" / "thesis.txt").read_text() == "years"


def test_the_generation_configuration_stops_on_every_stop_token(tiny: Path, tmp_path: Path) -> None:
    backbone = quantized(tiny, "nf4")
    trained(backbone, tmp_path / "adapter")
    plan = plan_of(backbone, tmp_path / "adapter", stop_token_ids=(0, 2))
    merge_stream(plan, tmp_path / "merged")
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert generation["eos_token_id"] == [0, 2]
    assert "quantization_config" not in config
    assert not any(str(tiny) in str(value) for value in config.values())


def test_the_merged_weights_can_be_stored_in_another_dtype(tiny: Path, tmp_path: Path) -> None:
    backbone = quantized(tiny, "nf4")
    trained(backbone, tmp_path / "adapter")
    for dtype in ("float32", "bfloat16"):
        plan = plan_of(backbone, tmp_path / "adapter", stored_dtype=dtype)
        merge_stream(plan, tmp_path / dtype)
    exact = load_file(tmp_path / "float32" / "model.safetensors")
    rounded = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert set(exact) == set(rounded)
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_tensor_of_the_adapter_without_a_place_is_an_error(tiny: Path, tmp_path: Path) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    stray = {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 64)}
    save_file(tensors | stray, weights)
    with pytest.raises(
        MergeError, match=r"1 tensors have no place in the backbone \(got .*layers\.9"
    ):
        merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_module_that_the_adapter_lacks_is_an_error(tiny: Path, tmp_path: Path) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {key: t for key, t in load_file(weights).items() if "layers.1.mlp.up_proj" not in key}
    save_file(kept, weights)
    with pytest.raises(MergeError, match=r"needs 2 tensors that are missing.*1\.mlp\.up_proj"):
        merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")


def test_factors_that_changed_places_are_an_error(tiny: Path, tmp_path: Path) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    swapped = {
        key.replace("lora_A", "lora_?").replace("lora_B", "lora_A").replace("lora_?", "lora_B"): t
        for key, t in load_file(weights).items()
    }
    save_file(swapped, weights)
    with pytest.raises(MergeError, match="does not fit the backbone"):
        merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_found_in_adapter_and_backbone(
    tiny: Path, tmp_path: Path, number: float
) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = next(key for key in tensors if "lora_B" in key)
    broken = tensors[key].clone()
    broken[0, 0] = number
    save_file(tensors | {key: broken}, weights)
    with pytest.raises(MergeError, match=re.escape(key)):
        merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    save_file(tensors, weights)
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    stored = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    stored[name][3, 3] = number
    save_file(stored, base / "model.safetensors")
    with pytest.raises(MergeError, match=re.escape(name)):
        merge_stream(plan_of(backbone, tmp_path / "adapter", base=base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_sum_too_large_for_float16_is_an_error(tiny: Path, tmp_path: Path) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = next(key for key in tensors if "lora_B" in key)
    save_file(tensors | {key: torch.full_like(tensors[key], 1e6)}, weights)
    plan = plan_of(backbone, tmp_path / "adapter", stored_dtype="float16")
    with pytest.raises(MergeError, match="infinite or NaN"):
        merge_stream(plan, tmp_path / "merged")
    merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")


def test_a_backbone_of_another_shape_is_an_error(
    tiny: Path, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {
        key: torch.cat([t, t], dim=1) if "lora_A" in key else t
        for key, t in load_file(path).items()
    }
    save_file(tensors, path)
    plan = plan_of(backbone, tmp_path / "adapter", base=checkpoints["tied"])
    with pytest.raises(MergeError, match=r"does not fit the backbone \(got .*size mismatch"):
        merge_stream(plan, tmp_path / "merged")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = quantized(tiny, "none")
    trained(backbone, tmp_path / "adapter")
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MergeError, match=r"disk too small \(got 0\.0 GB free, 0\.1 GB are needed"):
        merge_stream(plan_of(backbone, tmp_path / "adapter"), tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
