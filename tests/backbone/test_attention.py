"""The recipe chooses the attention implementation; unavailable ones are refused with a reason."""

import json
from pathlib import Path

import pytest
import torch
import transformers.utils
import yaml

from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.attention import attention_arguments
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.evaluation.engine.layout_search import LAYOUTS, possible_layouts
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.record import start_record
from lora_kit.runs.session import open_subject
from lora_kit.runtime.errors import BackboneError, RecipeError

GPU = torch.device("cuda")


def loaded(tiny: Path, attention: str) -> Backbone:
    spec = BackboneSpec.model_validate(
        {"model": str(tiny), "quantization": "none", "dtype": "float32", "attention": attention}
    )
    return load(resolve(spec), spec)


@pytest.mark.parametrize(
    ("requested", "resolved"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")]
)
def test_the_requested_attention_is_used_and_recorded_in_the_resolved_recipe(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path, requested: str, resolved: str
) -> None:
    backbone = loaded(tiny, requested)
    assert backbone.model.config._attn_implementation == resolved
    run = RunDirectory(tmp_path / "run")
    start_record(run, tiny_recipe, backbone, "train")
    assert yaml.safe_load(run.recipe.read_text())["backbone"]["attention"] == resolved
    assert run.load_recipe().backbone == backbone.spec


def test_the_fingerprint_does_not_depend_on_attention(tiny: Path) -> None:
    one, other = loaded(tiny, "sdpa"), loaded(tiny, "eager")
    assert one.fingerprint == other.fingerprint
    ids = torch.arange(8)[None]
    torch.testing.assert_close(one.model(ids).logits, other.model(ids).logits)


@pytest.mark.parametrize("recorded", [{}, {"attention": "flash_attention_2"}])
def test_a_bare_adapter_is_opened_with_the_attention_of_this_machine(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path, recorded: dict[str, str]
) -> None:
    """An adapter saved before attention was recorded, and one that was trained on a GPU."""
    backbone = loaded(tiny, "eager")
    save_adapter(attach(backbone, tiny_recipe.adapter, seed=0), backbone, tmp_path / "adapter")
    path = tmp_path / "adapter" / "backbone.json"
    value = json.loads(path.read_text())
    assert value.pop("attention") == "eager"
    path.write_text(json.dumps(value | recorded))
    assert open_subject(tmp_path / "adapter", None).backbone.spec.attention == "sdpa"


def test_flash_attention_without_a_gpu_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_kit.backbone.load.process_state", lambda: CPU)
    spec = BackboneSpec(model=str(tiny), dtype="bfloat16", attention="flash_attention_2")
    part = r"^backbone\.attention: flash_attention_2 needs a GPU \(got device cpu\)"
    with pytest.raises(BackboneError, match=part):
        load(resolve(spec), spec)


class CPU:
    """Process state on the CPU, whatever the machine has."""

    device = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "installed", "part"),
    [((7, 5), True, r"8\.0 or higher \(got \(7, 5\)"), ((9, 0), False, "package flash-attn")],
)
def test_flash_attention_without_kernels_is_refused(
    capability: tuple[int, int], installed: bool, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: installed)
    with pytest.raises(BackboneError, match=rf"^backbone\.attention: flash_attention_2 .*{part}"):
        attention_arguments("flash_attention_2", GPU)


def test_flash_attention_is_requested_where_it_is_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    requested = attention_arguments("flash_attention_2", GPU)
    assert requested == {"attn_implementation": "flash_attention_2"}


def test_flash_attention_in_float32_is_refused_with_the_recipe() -> None:
    wrong = ["backbone.attention=flash_attention_2", "backbone.dtype=float32"]
    with pytest.raises(RecipeError, match="kernels for bfloat16 and float16 only"):
        Recipe.load("quickstart", wrong)
    assert Recipe.load("quickstart", wrong[:1]).backbone.dtype == "auto"


def test_a_kernel_that_replaces_the_requested_one_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers replaces flash attention for models that name their own kernels."""
    monkeypatch.setattr(
        "lora_kit.backbone.load.attention_arguments", lambda *_: {"attn_implementation": "sdpa"}
    )
    with pytest.raises(BackboneError, match=r"backbone\.attention: eager: .* uses sdpa instead"):
        loaded(tiny, "eager")


def test_tree_layouts_are_not_tried_with_flash_attention() -> None:
    assert possible_layouts("sdpa") == LAYOUTS
    left = possible_layouts("flash_attention_2")
    assert left[-1] == LAYOUTS[-1]
    assert len(left) == 2
    assert not any(layout.tree for layout in left)
