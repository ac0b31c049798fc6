"""Adapters and options that cannot be combined."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.merging.combining.combine import CombinationOptions, combine
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import MergeError
from tests.merging.combining import change_configuration


def test_another_backbone_is_refused_with_what_differs(
    tiny: Path, random_adapter: Any, tmp_path: Path
) -> None:
    one = random_adapter(tmp_path / "one", 0)
    spec = BackboneSpec(model=str(tiny), quantization="nf4", dtype="float32")
    quantized = load(resolve(spec), spec)
    save_adapter(attach(quantized, AdapterSpec(rank=4), 1), quantized, tmp_path / "nf4")
    with pytest.raises(
        MergeError, match=r"another backbone than .*one \(got different: quantization\)"
    ):
        combine([one, tmp_path / "nf4"], CombinationOptions(), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_names_are_compared_where_there_is_no_fingerprint_and_it_says_so(
    three: list[Path], tmp_path: Path
) -> None:
    (three[1] / "backbone.json").unlink()
    result = combine(three[:2], CombinationOptions(), tmp_path / "named")
    assert result.compared_by == "name"
    assert not (tmp_path / "named" / "backbone.json").exists()
    change_configuration(three[1], revision="abc")
    with pytest.raises(
        MergeError, match=r"two: trained on another base model than .*one \(got .* at abc, there "
    ):
        combine(three[:2], CombinationOptions(), tmp_path / "revised")
    change_configuration(three[1], base_model_name_or_path=None)
    with pytest.raises(MergeError, match="two: base_model_name_or_path: missing"):
        combine(three[:2], CombinationOptions(), tmp_path / "nameless")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"use_dora: makes the adapter more .*\(got True\)"),
        ({"peft_type": "IA3"}, r"peft_type: not LoRA \(got IA3\)"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: .*\(got \['lm_head'\]\)"),
        ({"bias": "all"}, r" bias: .*\(got 'all'\)"),
        ({"invented_in_2030": 3}, "invented_in_2030"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            r"init_lora_weights: changes the base weights.*\(got 'pissa_niter_4'\)",
        ),
        ({"r": 8}, r"got lora_A \(4, 128\).*rank in adapter_config.json is 8"),
        ({"lora_alpha": None}, r"lora_alpha: missing or no number \(got None\)"),
        ({"fan_in_fan_out": True}, r"fan_in_fan_out: .*\(got true in .*one, false in"),
        ({"r": 0}, r"adapter_config\.json: r: must be a whole number from 1 on \(got 0\)"),
        ({"r": 1.5}, r"adapter_config\.json: r: must be a whole number .*\(got 1\.5\)"),
        ({"r": float("inf")}, r"adapter_config\.json: r: must be a whole number .*\(got inf\)"),
        (
            {"rank_pattern": {"q_proj": 0}},
            r"rank_pattern\.q_proj: must be a whole number .*\(got 0\)",
        ),
        ({"rank_pattern": [1]}, r"rank_pattern: \[1\]: Input should be an object"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern: .*'x'}: Input should be a valid number"),
        ({"alpha_pattern": {"(": 4}}, r"alpha_pattern: no regular expression \(got \(:"),
        ({"task_type": "SEQ_CLS"}, r"task_type: .*\(got CAUSAL_LM, but SEQ_CLS in .*one\)"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(
    changes: dict[str, Any], message: str, three: list[Path], tmp_path: Path
) -> None:
    change_configuration(three[1], r=2)
    change_configuration(three[0], **changes)
    with pytest.raises(MergeError, match=message):
        combine(three, CombinationOptions(), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_fingerprint_that_is_not_whole_is_refused(three: list[Path], tmp_path: Path) -> None:
    path = three[1] / "backbone.json"
    path.write_text('{"fingerprint": "digest"}')
    with pytest.raises(MergeError, match=r"two/backbone\.json: no valid fingerprint .*names"):
        combine(three, CombinationOptions(), tmp_path / "refused")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_an_error_naming_the_tensor(
    value: float, three: list[Path], tmp_path: Path
) -> None:
    weights = three[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    tensors[key][3, 1] = value
    save_file(tensors, weights)
    with pytest.raises(
        MergeError, match=r"two.*layers\.1\.mlp\.up_proj\.lora_B\.weight has values that are inf"
    ):
        combine(three, CombinationOptions(), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_tensors_that_are_no_pair_and_other_sizes_are_refused(
    three: list[Path], tmp_path: Path
) -> None:
    weights = three[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    save_file(tensors | {key: tensors[key][:, :32].clone()}, weights)
    with pytest.raises(MergeError, match=r"layers\.1\.mlp\.up_proj: shapes differ"):
        combine(three, CombinationOptions(), tmp_path / "refused")
    save_file({k: v for k, v in tensors.items() if k != key}, weights)
    with pytest.raises(MergeError, match="1 tensors are no pair"):
        combine(three, CombinationOptions(), tmp_path / "refused")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MergeError, match=r"cannot be read \(got"):
        combine(three, CombinationOptions(), tmp_path / "refused")


@pytest.mark.parametrize("method", ["linear", "svd", "dare_ties"])
def test_weights_that_overflow_are_refused(method: Any, three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="overflows float32"):
        combine(three[:2], CombinationOptions(method, weights=(1e39, 1.0)), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1.0,)}, "got 1 for 3 adapters"),
        ({"weights": (1.0, 0.0, 1.0)}, "must be finite and not 0 .*0.0"),
        ({"weights": (1.0, float("nan"), 1.0)}, "must be finite and not 0 .*nan"),
        ({"weights": (1.0, 1.0, 1.0), "weigh_by_examples": True}, "choose one"),
        ({"rank": 4}, "linear is exact"),
        ({"method": "svd", "rank": 0}, r"--rank: must be at least 1 \(got 0\)"),
        ({"density": 0.5}, "--density: only for ties"),
        (
            {"method": "ties", "density": 1.5},
            r"--density: must be above 0 and at most 1 \(got 1.5\)",
        ),
        ({"method": "ties", "seed": 1}, "--seed: only for dare_linear"),
    ],
)
def test_options_that_cannot_work_are_refused(
    options: dict[str, Any], message: str, three: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match=message):
        combine(three, CombinationOptions(**options), tmp_path / "refused")
