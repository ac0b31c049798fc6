"""Regular expressions of adapters: refused if they do not end, and not for another reason."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from lora_kit.adapter import quick_patterns
from lora_kit.adapter.attach import attach_saved, wrap_with_adapter
from lora_kit.adapter.quick_patterns import require_quick_patterns
from lora_kit.backbone.load import Backbone
from lora_kit.merging.meta_model import build_meta_model
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.runtime.errors import AdapterError, LoraKitError

ENDLESS = (r"(\w+\.?)+!", r"(\w|\.|\w\w)+!", r"(([\w.])+)+\d{9}", r"(.|..)*(.|..)*!")
OPTIONS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save")
# Names of a large mixture of experts.
NAMES = [
    f"model.layers.{layer}.mlp.experts.{expert}.{name}"
    for layer in range(61)
    for expert in range(64)
    for name in ("gate_proj", "up_proj", "down_proj")
]


def options(option: str, pattern: str) -> dict[str, Any]:
    if option.endswith("_pattern"):
        return {option: {"q_proj": 2, pattern: 2}}
    return {option: [pattern] if option == "modules_to_save" else pattern}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("pattern", ENDLESS)
def test_an_expression_that_does_not_end_is_refused(
    option: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_patterns, "SECONDS", 0.2)
    with pytest.raises(AdapterError, match=f"file: {option}: .*takes too long"):
        require_quick_patterns(options(option, pattern), NAMES, "file: ")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        r".*layers\.(\d+)\..*(gate|up|down)_proj",
        r"model\.layers\.([0-9]|1[0-9])\.mlp\.experts\.\d+\.(up_proj|down_proj)",
        r"^(?!.*experts\.[0-9]+\.gate).*\.mlp\..*$",
        "(unbalanced",
        "a{1,99999999999}",
    ],
)
def test_expressions_of_a_large_model_are_accepted(option: str, pattern: str) -> None:
    require_quick_patterns(options(option, pattern), NAMES, "")


def saved(base: Backbone, folder: Path, **changes: Any) -> Path:
    get_peft_model(
        base.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    ).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_refused_wherever_an_adapter_is_read(
    option: str, tiny: Path, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(quick_patterns, "SECONDS", 0.2)
    kept = copy.deepcopy(tiny_backbone.model)
    adapter = saved(tiny_backbone, tmp_path / "adapter", **options(option, ENDLESS[0]))
    with pytest.raises(LoraKitError, match=f"adapter_config.json: {option}: .*takes too long"):
        build_meta_model(tiny, adapter)
    with pytest.raises(LoraKitError, match=f"adapter_config.json: {option}: .*takes too long"):
        attach_saved(dataclasses.replace(tiny_backbone, model=kept), adapter)


@pytest.mark.parametrize("option", ["exclude_modules", "rank_pattern", "alpha_pattern"])
def test_it_is_refused_in_a_recipe(
    option: str, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_patterns, "SECONDS", 0.2)
    spec = AdapterSpec(rank=2, options=options(option, ENDLESS[0]))
    with pytest.raises(AdapterError, match=f"adapter.options.{option}: .*takes too long"):
        wrap_with_adapter(tiny_backbone.model, spec)
