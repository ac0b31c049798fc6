"""Trained parameters without a gradient, which data parallelism has to search for."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import SFTConfig

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.training import arguments
from lora_kit.training.arguments import training_arguments
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.unused_parameters import may_be_unused
from tests.integration.test_processes import QUIZ, start
from tests.training_rows import training_rows


def inputs_of(recipe: Recipe, backbone: Backbone, folder: Path, **adapter: Any) -> TrainingInputs:
    rows, replay = training_rows(recipe.data, recipe.seed)
    data = prepare(rows, backbone.tokenizer, recipe.data, replay)
    spec = recipe.adapter.model_validate({"method": "lora", "rank": 4, "alpha": 8} | adapter)
    model = attach(backbone, spec, recipe.seed)
    return TrainingInputs(recipe, backbone, model, data, None, RunDirectory(folder))


@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"target_modules": ["q_proj"], "options": {"trainable_token_indices": [5]}},
        {"method": "prompt_tuning", "rank": None, "alpha": None},
        {"method": "last-1", "rank": None, "alpha": None},
    ],
)
def test_every_trained_parameter_of_a_language_model_is_used(
    tiny_recipe: Recipe, tiny_backbone: Backbone, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    inputs = inputs_of(tiny_recipe, tiny_backbone, tmp_path, **adapter)
    before = torch.get_rng_state()
    assert not may_be_unused(inputs)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in inputs.model.parameters())


@pytest.mark.parametrize("name", ["tower", "experts"])
def test_adapters_that_a_text_does_not_reach_are_found(
    tiny_recipe: Recipe, tiny_backbone: Backbone, tmp_path: Path, name: str
) -> None:
    """A vision tower, and a module for each expert, used here by the tokens of every text."""
    model = tiny_backbone.model
    if name == "tower":
        model.vision = torch.nn.Sequential(torch.nn.Linear(8, 8))
    else:
        mlp = model.model.layers[0].mlp
        mlp.experts = torch.nn.ModuleList([mlp.down_proj])
        mlp.down_proj = torch.nn.Identity()
        mlp.register_forward_hook(lambda module, _, out: module.experts[0](out))
    assert may_be_unused(inputs_of(tiny_recipe, tiny_backbone, tmp_path))


def test_layers_that_are_skipped_at_random_are_found(
    tiny_recipe: Recipe, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    tiny_backbone.model.config.decoder_layerdrop = 0.1
    assert may_be_unused(inputs_of(tiny_recipe, tiny_backbone, tmp_path))


def test_only_data_parallelism_searches(
    tiny_recipe: Recipe, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(tiny_recipe, tiny_backbone, tmp_path)
    tiny_backbone.model.config.decoder_layerdrop = 0.1
    alone = training_arguments(SFTConfig, inputs)
    assert alone.ddp_find_unused_parameters is False
    two = SimpleNamespace(num_processes=2, device=arguments.process_state().device)
    monkeypatch.setattr(arguments, "process_state", lambda: two)
    assert training_arguments(SFTConfig, inputs).ddp_find_unused_parameters is True


SCRIPT = """
from torch.nn.parallel import DistributedDataParallel as Parallel
from lora_kit.cli import main
create = Parallel.__init__
def creating(self, *arguments, **named):
    print("searches:", named.get("find_unused_parameters", False))
    create(self, *arguments, **named)
Parallel.__init__ = creating
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tower", [False, True])
def test_two_processes_search_only_where_a_tower_is_not_used(
    tiny_recipe: Recipe, tiny: Path, tmp_path: Path, tower: bool
) -> None:
    """Steps of a last, empty share included; a Gemma 3 has adapters on its vision tower."""
    (tmp_path / "quiz.yaml").write_text(json.dumps(QUIZ))
    changed = tiny_recipe.model_dump(mode="json")
    changed["data"]["train"][0]["limit"] = 17
    changed["evaluation"]["suites"] = [str(tmp_path / "quiz.yaml")]
    if tower:
        write_gemma(tiny, tmp_path / "gemma")
        changed["backbone"]["model"] = str(tmp_path / "gemma")
    (tmp_path / "tiny.yaml").write_text(Recipe.model_validate(changed).to_yaml())
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = start(2, ["train", "tiny.yaml", "--output", "run"], tmp_path, [str(script)])
    assert done.returncode == 0, done.stderr
    # What others print than the results goes to stderr.
    assert done.stderr.count(f"searches: {tower}") == 2


def write_gemma(tiny: Path, folder: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    size = json.loads((tiny / "config.json").read_text())["vocab_size"]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = {**shape, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    vision = {**shape, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config={**text, "vocab_size": size, "pad_token_id": 2},
        vision_config=vision,
        mm_tokens_per_image=1,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    for file in (*tiny.glob("tokenizer*"), *tiny.glob("*.jinja")):
        shutil.copy(file, folder / file.name)
