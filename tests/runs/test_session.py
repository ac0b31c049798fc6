from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_subject
from lora_kit.runtime.errors import AdapterError


@pytest.fixture
def half_precision(tiny: Path, tiny_recipe: Recipe, tmp_path: Path) -> Path:
    """An adapter of an nf4 backbone in a dtype that `auto` never is on a CPU."""
    spec = BackboneSpec(model=str(tiny), quantization="nf4", dtype="float16", license="MIT")
    backbone = load(resolve(spec), spec)
    save_adapter(attach(backbone, tiny_recipe.adapter, seed=0), backbone, tmp_path / "adapter")
    path = tmp_path / "adapter" / "backbone.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"model": "/another/machine", "revision": "abc"}))
    return tmp_path / "adapter"


def test_a_backbone_that_lies_elsewhere_is_loaded_as_the_adapter_says(
    half_precision: Path, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"another/machine.*--backbone"):
        open_subject(half_precision, None)
    moved = shutil.copytree(tiny, tmp_path / "moved")
    spec = open_subject(half_precision, BackboneSpec(model=str(moved))).backbone.spec
    assert (spec.model, spec.revision) == (str(moved), None)
    assert (spec.quantization, spec.dtype, spec.license) == ("nf4", "float16", "MIT")


def test_what_is_given_comes_before_what_the_adapter_says(half_precision: Path, tiny: Path) -> None:
    given = BackboneSpec(model=str(tiny), quantization="none")
    with pytest.raises(AdapterError, match=r"changed: .*quantization"):
        open_subject(half_precision, given)


@pytest.mark.parametrize(
    ("config", "described"),
    [
        (LoraConfig(task_type="CAUSAL_LM", r=4), "lora, rank 4"),
        (
            AdaLoraConfig(task_type="CAUSAL_LM", target_r=4, init_r=6, total_step=9),
            "adalora, rank 4",
        ),
        (IA3Config(task_type="CAUSAL_LM"), "ia3"),
    ],
)
def test_another_tools_adapter_is_described_by_its_method_and_rank(
    tiny: Path, tmp_path: Path, config: PeftConfig, described: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    get_peft_model(model, config).save_pretrained(tmp_path)
    subject = open_subject(tmp_path, BackboneSpec(model=str(tiny)))
    assert subject.facts == {"Adapter": described}


def test_of_another_tools_adapter_the_weights_are_taken_as_they_are(
    tiny: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    assert (
        open_subject(tmp_path, BackboneSpec(model=str(tiny))).backbone.spec.quantization == "none"
    )
