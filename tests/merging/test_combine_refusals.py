"""What cannot be combined."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_kit.adapter.attach import attach
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.merging.combining.combine import Combination, combine
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import MergeError
from lora_kit.training.trainer import save_adapter
from tests.merging.combining import changed


def test_another_backbone_is_refused_with_what_differs(
    tiny: Path, random_adapter: Any, tmp_path: Path
) -> None:
    one = random_adapter(tmp_path / "one", 0)
    spec = BackboneSpec(model=str(tiny), quantization="nf4", dtype="float32")
    quantized = load(resolve(spec), spec)
    save_adapter(attach(quantized, AdapterSpec(rank=4), 1), quantized, tmp_path / "nf4")
    with pytest.raises(MergeError, match=r"another backbone than .*one; different: quantization$"):
        combine([one, tmp_path / "nf4"], Combination(), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_names_are_compared_where_there_is_no_fingerprint_and_it_says_so(
    three: list[Path], tmp_path: Path
) -> None:
    (three[1] / "backbone.json").unlink()
    result = combine(three[:2], Combination(), tmp_path / "named")
    assert result.compared_by == "name"
    assert not (tmp_path / "named" / "backbone.json").exists()
    changed(three[1], revision="abc")
    with pytest.raises(MergeError, match=r"two: trained on .* at abc, but .*one on "):
        combine(three[:2], Combination(), tmp_path / "revised")
    changed(three[1], base_model_name_or_path=None)
    with pytest.raises(MergeError, match="two: names no base model"):
        combine(three[:2], Combination(), tmp_path / "nameless")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora: True makes it more"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"invented_in_2030": 3}, "invented_in_2030"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"r": 8}, r"lora_A is \(4, 128\).*rank in adapter_config.json is 8"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"fan_in_fan_out": True}, "true in some of the adapters"),
        ({"r": 0}, r"adapter_config\.json: r: 0; possible: whole numbers from 1 on"),
        ({"r": 1.5}, r"adapter_config\.json: r: 1\.5; possible: whole numbers"),
        ({"r": float("inf")}, r"adapter_config\.json: r: inf; possible: whole numbers"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj: 0; possible: whole numbers"),
        ({"rank_pattern": [1]}, r"rank_pattern: \[1\]: Input should be an object"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern: .*'x'}: Input should be a valid number"),
        ({"alpha_pattern": {"(": 4}}, r"alpha_pattern: \( is no regular expression"),
        ({"task_type": "SEQ_CLS"}, "task_type: CAUSAL_LM, but SEQ_CLS in .*one; only adapters"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(
    changes: dict[str, Any], message: str, three: list[Path], tmp_path: Path
) -> None:
    changed(three[1], r=2)
    changed(three[0], **changes)
    with pytest.raises(MergeError, match=message):
        combine(three, Combination(), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_fingerprint_that_is_not_whole_is_refused(three: list[Path], tmp_path: Path) -> None:
    path = three[1] / "backbone.json"
    path.write_text('{"fingerprint": "digest"}')
    with pytest.raises(MergeError, match=r"two/backbone\.json: has no fingerprint .*names"):
        combine(three, Combination(), tmp_path / "refused")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_an_error_naming_the_tensor(
    value: float, three: list[Path], tmp_path: Path
) -> None:
    weights = three[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    tensors[key][3, 1] = value
    save_file(tensors, weights)
    with pytest.raises(MergeError, match=r"two.*layers\.1\.mlp\.up_proj\.lora_B\.weight holds"):
        combine(three, Combination(), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_tensors_that_are_no_pair_and_other_sizes_are_refused(
    three: list[Path], tmp_path: Path
) -> None:
    weights = three[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    save_file(tensors | {key: tensors[key][:, :32].clone()}, weights)
    with pytest.raises(MergeError, match=r"layers\.1\.mlp\.up_proj: of different sizes"):
        combine(three, Combination(), tmp_path / "refused")
    save_file({k: v for k, v in tensors.items() if k != key}, weights)
    with pytest.raises(MergeError, match="1 tensors are no pair"):
        combine(three, Combination(), tmp_path / "refused")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MergeError, match="cannot be read"):
        combine(three, Combination(), tmp_path / "refused")


@pytest.mark.parametrize("method", ["linear", "svd", "dare_ties"])
def test_weights_that_overflow_are_refused(method: Any, three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="overflows float32"):
        combine(three[:2], Combination(method, weights=(1e39, 1.0)), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1.0,)}, "1 given for 3 adapters"),
        ({"weights": (1.0, 0.0, 1.0)}, "not 0"),
        ({"weights": (1.0, float("nan"), 1.0)}, "finite"),
        ({"weights": (1.0, 1.0, 1.0), "weigh_by_examples": True}, "choose one"),
        ({"rank": 4}, "linear is exact"),
        ({"method": "svd", "rank": 0}, "at least 1"),
        ({"density": 0.5}, "--density goes with"),
        ({"method": "ties", "density": 1.5}, "at most 1"),
        ({"method": "ties", "seed": 1}, "--seed goes with"),
    ],
)
def test_options_that_cannot_work_are_refused(
    options: dict[str, Any], message: str, three: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match=message):
        combine(three, Combination(**options), tmp_path / "refused")
