"""A plan says what a training takes here, and tries out only what fits."""

from typing import Any

import pytest
import torch
from rich.console import Console

from lora_kit.adapters import attach
from lora_kit.backbone import Backbone
from lora_kit.data.dataset import PreparedData, prepare, training_rows
from lora_kit.preflight import forecast as forecasting
from lora_kit.preflight.forecast import forecast
from lora_kit.preflight.memory import CUDA_BASE
from lora_kit.preflight.show import _show_forecast
from lora_kit.recipe import Recipe


@pytest.fixture
def data(tiny_backbone: Backbone, tiny_recipe: Recipe) -> PreparedData:
    rows, _ = training_rows(tiny_recipe.data, tiny_recipe.seed)
    return prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data)


@pytest.fixture
def model(tiny_backbone: Backbone, tiny_recipe: Recipe) -> Any:
    return attach(tiny_backbone, tiny_recipe.adapter, seed=0)


def test_what_does_not_fit_is_not_tried_out(
    tiny_backbone: Backbone,
    tiny_recipe: Recipe,
    model: Any,
    data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(forecasting, "device_memory", lambda _device: 1000)
    monkeypatch.setattr(forecasting, "libraries_memory", lambda: 0)
    monkeypatch.setattr("lora_kit.preflight.cards.SHORTER", (1,))
    monkeypatch.setattr(forecasting, "probe", lambda *_: pytest.fail("was tried out"))
    found = forecast(tiny_recipe, tiny_backbone, model, data, data)
    assert not found.fits
    assert found.to_dict()["probe"] is found.to_dict()["duration"] is None
    _show_forecast(found, Console(width=120))
    assert "This machine has 0.0 GB" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="it takes a machine without a GPU")
def test_a_machine_without_a_gpu_says_what_one_would_take(
    tiny_backbone: Backbone,
    tiny_recipe: Recipe,
    model: Any,
    data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(forecasting, "libraries_memory", lambda: 0)
    backbone = tiny_recipe.backbone.model_copy(update={"dtype": "auto"})
    recipe = tiny_recipe.model_copy(update={"backbone": backbone})
    found = forecast(recipe, tiny_backbone, model, data, data)
    assert found.fits
    assert found.probe is not None
    gpu = found.on_a_gpu
    assert gpu is not None
    assert (gpu.device, gpu.components["libraries"]) == ("cuda", CUDA_BASE)
    share = recipe.training.micro_batch_size or recipe.training.batch_size
    assert gpu.batch.rows == min(share, len(data.examples)), "a GPU takes the whole batch at once"
    assert found.to_dict()["on_a_gpu"]["cards"][0] == "T4 16 GB"
    _show_forecast(found, Console(width=120))
    assert "on a GPU: " in capsys.readouterr().out
