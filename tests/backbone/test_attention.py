"""How attention is computed is the recipe's choice; what cannot work is refused with the reason."""

import json
from pathlib import Path

import pytest
import torch
import transformers.utils
import yaml

from lora_kit.adapter.attach import attach
from lora_kit.backbone.attention import attention_arguments
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.evaluation.engine.probe import WAYS, ways
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory, start_record
from lora_kit.runs.session import open_subject
from lora_kit.runtime.errors import BackboneError, RecipeError
from lora_kit.training.trainer import save_adapter

GPU = torch.device("cuda")


def loaded(tiny: Path, attention: str) -> Backbone:
    spec = BackboneSpec.model_validate(
        {"model": str(tiny), "quantization": "none", "dtype": "float32", "attention": attention}
    )
    return load(resolve(spec), spec)


@pytest.mark.parametrize(
    ("asked", "taken"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")]
)
def test_attention_is_computed_as_asked_and_the_resolved_recipe_says_how(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path, asked: str, taken: str
) -> None:
    backbone = loaded(tiny, asked)
    assert backbone.model.config._attn_implementation == taken
    run = RunDirectory(tmp_path / "run")
    start_record(run, tiny_recipe, backbone, "train")
    assert yaml.safe_load(run.recipe.read_text())["backbone"]["attention"] == taken
    assert run.load_recipe().backbone == backbone.spec


def test_it_is_the_same_backbone_however_attention_is_computed(tiny: Path) -> None:
    one, other = loaded(tiny, "sdpa"), loaded(tiny, "eager")
    assert one.fingerprint == other.fingerprint
    ids = torch.arange(8)[None]
    torch.testing.assert_close(one.model(ids).logits, other.model(ids).logits)


@pytest.mark.parametrize("recorded", [{}, {"attention": "flash_attention_2"}])
def test_an_adapter_alone_is_opened_with_the_attention_of_this_machine(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path, recorded: dict[str, str]
) -> None:
    """One that was made before there was a choice, and one that was trained on a GPU."""
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
    with pytest.raises(BackboneError, match=r"^backbone\.attention: .*takes a GPU, .* device cpu"):
        load(resolve(spec), spec)


class CPU:
    """A process that computes on the CPU, whatever there is."""

    device = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "installed", "part"),
    [((7, 5), True, r"8\.0 or higher, .*\(7, 5\)"), ((9, 0), False, "package flash-attn")],
)
def test_flash_attention_where_it_has_no_kernels_is_refused(
    capability: tuple[int, int], installed: bool, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: installed)
    with pytest.raises(BackboneError, match=rf"^backbone\.attention: flash_attention_2 .*{part}"):
        attention_arguments("flash_attention_2", GPU)


def test_flash_attention_where_all_is_there_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    asked = attention_arguments("flash_attention_2", GPU)
    assert asked == {"attn_implementation": "flash_attention_2"}


def test_flash_attention_in_float32_is_refused_with_the_recipe() -> None:
    wrong = ["backbone.attention=flash_attention_2", "backbone.dtype=float32"]
    with pytest.raises(RecipeError, match="kernels for bfloat16 and float16 only"):
        Recipe.load("quickstart", wrong)
    assert Recipe.load("quickstart", wrong[:1]).backbone.dtype == "auto"


def test_a_kernel_in_the_place_of_the_one_that_was_asked_for_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers does with flash attention for models that name others of their own."""
    monkeypatch.setattr(
        "lora_kit.backbone.load.attention_arguments", lambda *_: {"attn_implementation": "sdpa"}
    )
    with pytest.raises(BackboneError, match=r"backbone\.attention: eager: .* takes sdpa in its"):
        loaded(tiny, "eager")


def test_a_tree_is_not_even_tried_with_flash_attention() -> None:
    assert ways("sdpa") == WAYS
    left = ways("flash_attention_2")
    assert left[-1] == WAYS[-1]
    assert len(left) == 2
    assert not any(way.tree for way in left)
