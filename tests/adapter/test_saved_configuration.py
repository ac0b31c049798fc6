"""Adapters of other tools and damaged ones: errors name the file and the problem."""

import json
import re
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from peft import AdaLoraConfig, LoraConfig, __version__
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import save_adapter
from lora_kit.adapter.saved_configuration import read_configuration
from lora_kit.backbone.load import Backbone
from lora_kit.merging.methods import adapter_configuration
from lora_kit.recipe.adapter import AdapterSpec, PeftMethod
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runs.session import open_subject
from lora_kit.runtime.errors import AdapterError, MergeError
from tests.first_tokens import VOCABULARY
from tests.merging.combining import change_configuration


@pytest.fixture
def saved(tiny_backbone: Backbone, tmp_path: Path) -> Path:
    save_adapter(attach(tiny_backbone, AdapterSpec(rank=2), 0), tiny_backbone, tmp_path / "saved")
    return tmp_path / "saved"


def with_backbone(adapter: Path, **changes: Any) -> None:
    path = adapter / "backbone.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"peft_type": "FOO"},
            f"peft_type: 'FOO' is not a method of PEFT {__version__}. Fix: use one of ADALORA",
        ),
        ({"peft_type": 5}, "peft_type: 5 is not a method of PEFT"),
        ({"r": "four"}, "r: 'four': Input should be a valid number"),
        ({"r": None}, "r: None: Input should be a valid number"),
        ({"lora_alpha": True}, "lora_alpha: True: Input should be a valid number"),
        ({"use_dora": "no"}, "use_dora: 'no': Input should be a valid boolean"),
        ({"rank_pattern": [1]}, "rank_pattern: [1]: Input should be an object"),
        (
            {"rank_pattern": {"q_proj": "x"}},
            "rank_pattern: {'q_proj': 'x'}: Input should be a valid number",
        ),
        ({"target_modules": [5]}, "target_modules: [5]: Input should be a valid string"),
        (
            {"trainable_token_indices": ["a"]},
            "trainable_token_indices: ['a']: Input should be a valid integer",
        ),
        ({"task_type": "FOO"}, "Invalid task type: 'FOO'"),
        ({"use_future": True}, "use_future: True is an option that LORA does not have in PEFT"),
        ({"future_rank": 4}, "future_rank: 4 is an option that LORA does not have in PEFT"),
    ],
)
def test_a_configuration_that_peft_would_misread_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    change_configuration(saved, **changes)
    message = f"{saved / 'adapter_config.json'}: {message}"
    with pytest.raises(AdapterError, match=re.escape(message)):
        open_subject(saved, None)
    with pytest.raises(MergeError, match=re.escape(message)):
        adapter_configuration(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trainable_token_indices": [999_999]},
            "adapter_config.json: trainable_token_indices: 999999 is not a token of this backbone. "
            f"Fix: use token ids from 0 to {VOCABULARY - 1}",
        ),
        ({"rank_pattern": {"(": 4}}, "does not fit"),
        ({"r": 0}, "does not fit"),
        ({"target_modules": "("}, "does not fit"),
    ],
)
def test_a_configuration_that_does_not_fit_the_backbone_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    change_configuration(saved, **changes)
    with pytest.raises(AdapterError, match=re.escape(message)):
        open_subject(saved, None)


@pytest.mark.parametrize(
    "changes",
    [
        # Options of a newer PEFT, unset.
        {"use_future": False, "future_config": None, "future_pattern": {}, "future": "none"},
        # Options of the first versions.
        {"merge_weights": True, "enable_lora": None},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
        {"layers_pattern": ["layers"], "layers_to_transform": [0, 1]},
        {"lora_alpha": 0.5},
    ],
)
def test_options_without_effect_are_accepted(saved: Path, changes: dict[str, Any]) -> None:
    change_configuration(saved, **changes)
    read_configuration(saved / "adapter_config.json", AdapterError)


@pytest.mark.parametrize("method", typing.get_args(PeftMethod))
def test_a_configuration_saved_by_peft_is_accepted(tmp_path: Path, method: str) -> None:
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()]
    given = {"total_step": 10} if kind is AdaLoraConfig else {}
    config = kind(**given, task_type="CAUSAL_LM")
    if kind is AdaLoraConfig:
        config.rank_pattern = {"model.layers.0.self_attn.q_proj.lora_E": [True, False]}
    config.save_pretrained(str(tmp_path))
    read = read_configuration(tmp_path / "adapter_config.json", AdapterError)
    left_out = "runtime_config"
    names = [field.name for field in fields(kind) if field.name != left_out]
    assert [getattr(read, name) for name in names] == [getattr(config, name) for name in names]


def test_a_lora_variant_saved_by_peft_is_accepted(tmp_path: Path) -> None:
    from peft import EvaConfig

    given: dict[str, Any] = {
        "init_lora_weights": "eva",
        "eva_config": EvaConfig(rho=1.5),
        "rank_pattern": {"q_proj": 2},
        "target_modules": {"q_proj", "v_proj"},
        "trainable_token_indices": {"embed_tokens": [1, 2]},
    }
    LoraConfig(**given).save_pretrained(str(tmp_path))
    read = read_configuration(tmp_path / "adapter_config.json", AdapterError)
    assert getattr(read, "rank_pattern", None) == {"q_proj": 2}


NO_FINGERPRINT = (
    "no valid fingerprint of the backbone (missing or not a text in `fingerprint`: weights, config"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "foo"}, "quantization: 'foo': Input should be 'none', 'nf4'"),
        ({"model": 5}, "model: 5: Input should be a valid string"),
        ({"dtype": "float7"}, "dtype: 'float7': Input should be 'auto', 'bfloat16'"),
        (
            {"fingerprint": {}},
            f"{NO_FINGERPRINT}, tokenizer, quantization, dtype, digest). Fix: delete the file and "
            "use --backbone",
        ),
        ({"fingerprint": {"digest": "x"}}, NO_FINGERPRINT),
        ({"fingerprint": "digest"}, "no valid fingerprint of the backbone"),
    ],
)
def test_a_file_that_does_not_describe_a_backbone_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    with_backbone(saved, **changes)
    with pytest.raises(AdapterError, match=re.escape(f"{saved / 'backbone.json'}: {message}")):
        open_subject(saved, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": 7}, "base_model_name_or_path: 7: Input should be a valid"),
        ({"revision": 5}, "revision: 5: Input should be a valid string"),
    ],
)
def test_another_tools_adapter_without_a_valid_backbone_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    (saved / "backbone.json").unlink()
    change_configuration(saved, **changes)
    with pytest.raises(
        AdapterError, match=re.escape(f"{saved / 'adapter_config.json'}: {message}")
    ):
        open_subject(saved, None)


def test_a_given_backbone_takes_precedence_over_an_invalid_saved_one(
    saved: Path, tiny: Path
) -> None:
    with_backbone(saved, model=5)
    given = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
    assert open_subject(saved, given).backbone.spec.model == str(tiny)
