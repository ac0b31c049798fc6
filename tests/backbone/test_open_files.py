"""Models of strangers: opened in one place, without their code, and from their own folder only."""

import ast
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_kit.backbone.files import BackboneFiles, resolve
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.backbone.load import load
from lora_kit.backbone.open_files import open_config, require_plausible_counts
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError

ROOT = Path(__file__).parents[2] / "lora_kit"
OPENING = ("from_pretrained", "from_config")
# Classes of PEFT, which read no code.
OF_PEFT = ("PeftModel", "PeftConfig")


def opening_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_opening = isinstance(node, ast.Attribute) and node.attr in OPENING
        if is_opening and getattr(node.value, "id", "") not in OF_PEFT:
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_only_one_module_opens_files_with_transformers() -> None:
    calls = {path: list(opening_calls(path)) for path in ROOT.rglob("*.py")}
    inside = calls.pop(ROOT / "backbone" / "open_files.py")
    assert inside
    assert not [call for found in calls.values() for call in found]


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "copy", copy_function=os.link)
    return tmp_path / "copy"


def test_the_links_of_the_hub_cache_lead_to_its_blobs(tiny: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b/snapshots/1"
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny, blobs, copy_function=os.link)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    spec = BackboneSpec(model="a/b", quantization="none", dtype="float32")
    assert load(BackboneFiles("a/b", "1", snapshot), spec).model.config.hidden_size == 64


def test_a_link_beside_the_blobs_is_refused(tiny: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for file in tiny.iterdir():
        (snapshot / file.name).symlink_to(file)
    with pytest.raises(BackboneError, match="link out of the model's folder"):
        open_config(snapshot)


def test_a_folder_that_is_a_link_itself_is_a_model(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny)
    assert open_config(tmp_path / "model").hidden_size == 64
    assert weight_files(tmp_path / "model") == [tmp_path / "model" / "model.safetensors"]


def test_the_weights_that_transformers_loads_are_those_of_the_fingerprint(copied: Path) -> None:
    # With both, transformers reads the single file and not the index.
    shutil.copy(copied / "model.safetensors", copied / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": "other.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in weight_files(copied)] == ["model.safetensors"]
    (copied / "model.safetensors").unlink()
    assert [file.name for file in weight_files(copied)] == ["other.safetensors"]


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 20, "max_position_embeddings": 10**7, "vocab_size": 49152},
        {"num_hidden_layers": 900, "max_window_layers": 1000},
        {"block_size": 4096, "num_experts": 1000, "layer_norm_eps": 1e5},
    ],
)
def test_counts_of_real_models_are_plausible(tiny: Path, values: dict[str, float]) -> None:
    require_plausible_counts(values, tiny)


@pytest.mark.parametrize(
    "values",
    [
        {"n_layer": 10**5},
        {"decoder": {"num_layers": 10**5}},
        {"decoder_layers": 1e30},
        {"towers": [{"depth": 5000}]},
        {"num_attention_heads": 10**6},
        {"n_routed_experts": 10**9},
    ],
)
def test_counts_beyond_the_weights_are_refused(tiny: Path, values: dict[str, object]) -> None:
    with pytest.raises(BackboneError, match=r"the weights are of a smaller model"):
        require_plausible_counts(values, tiny)


@pytest.mark.parametrize("name", ["a" * 10_000, "a" * 300, "b/" * 5000 + "b"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(BackboneError, match=r"backbone\.model: .*cannot be looked up") as refused:
        resolve(BackboneSpec(model=name), allow_network=False)
    assert len(str(refused.value)) < 500
