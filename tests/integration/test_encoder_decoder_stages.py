"""Stages after training on an encoder-decoder backbone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach_saved
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.load import Backbone
from lora_kit.merging.combining.combine import CombinationOptions, combine
from lora_kit.pipeline import train
from lora_kit.pipeline.training import Trained
from lora_kit.rescaling.scale import AdapterScale, scaled_adapter
from tests.integration.test_encoder_decoder import SENTENCES, loaded, pair, recipe_of
from tests.training.cut import cut_off, losses, sha256
from tests.two_stacks import write_t5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def backbone(files: Path) -> Backbone:
    return loaded(files)


@pytest.fixture
def trained(files: Path, chats: Path, tmp_path: Path) -> Trained:
    return train(recipe_of(files, chats), tmp_path / "run")


@torch.no_grad()
def logits(model: Any, backbone: Backbone) -> torch.Tensor:
    source, target = pair(backbone, *SENTENCES[0])
    found: torch.Tensor = model.eval()(input_ids=source, labels=target).logits
    return found


def test_going_on_from_a_checkpoint_gives_the_same_adapter(
    files: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(files, chats, training={"save_steps": 1})
    train(recipe, tmp_path / "whole")
    cut_off(monkeypatch, recipe, tmp_path / "run", 4)
    train(recipe, tmp_path / "run", resume=True)
    assert sha256(tmp_path / "run") == sha256(tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("scale", [AdapterScale.uniform(0.5), AdapterScale(0.5, 1.0, 1.0)])
def test_a_strength_is_written_as_it_was_measured(
    trained: Trained, backbone: Backbone, tmp_path: Path, scale: AdapterScale
) -> None:
    model = trained.session.model
    whole = logits(model, backbone)
    if not scale.is_uniform:
        # The random model has two blocks in each stack, no three thirds.
        model.config.num_layers = model.config.num_hidden_layers = 3
    with scaled_adapter(model, scale):
        measured = logits(model, backbone)
        save_adapter(model, trained.session.backbone, tmp_path / "half")
    assert not torch.equal(measured, whole)
    assert torch.equal(logits(attach_saved(backbone, tmp_path / "half"), backbone), measured)


def test_a_combination_is_the_weighted_sum(
    trained: Trained, files: Path, chats: Path, backbone: Backbone, tmp_path: Path
) -> None:
    """The mean of an adapter and one of zeros is half of the adapter."""
    model = trained.session.model
    with scaled_adapter(model, AdapterScale.uniform(0.5)):
        half = logits(model, backbone)
    with scaled_adapter(model, AdapterScale.uniform(0.0)):
        save_adapter(model, trained.session.backbone, tmp_path / "nothing")
    adapters = [trained.session.run.adapter, tmp_path / "nothing"]
    halves = CombinationOptions("linear", (0.5, 0.5), False, None, None, None)
    combine(adapters, halves, tmp_path / "sum")
    found = logits(attach_saved(backbone, tmp_path / "sum"), backbone)
    torch.testing.assert_close(found, half, rtol=1e-4, atol=1e-4)
