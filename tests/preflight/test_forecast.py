"""Forecasts of memory and time run a micro batch only if the training fits."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rich.console import Console

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare
from lora_kit.data.prepared import PreparedData
from lora_kit.preflight import forecast as forecasting
from lora_kit.preflight.device import DeviceMemory, MemoryUser
from lora_kit.preflight.forecast import Forecast, forecast
from lora_kit.preflight.memory import CUDA_BASE
from lora_kit.preflight.show import _show_forecast
from lora_kit.recipe.recipe import Recipe
from tests.training_rows import training_rows


@dataclass(frozen=True)
class Subject:
    """Recipe to forecast, on a machine whose libraries take no memory."""

    recipe: Recipe
    backbone: Backbone
    model: Any
    data: PreparedData
    capsys: pytest.CaptureFixture[str]

    def forecast(self, recipe: Recipe | None = None) -> Forecast:
        """Forecast the recipe, or another one for the same prepared data."""
        return forecast(recipe or self.recipe, self.backbone, self.model, self.data, self.data)

    def shown(self, found: Forecast) -> str:
        """Return the printed forecast."""
        _show_forecast(found, Console(width=120))
        return self.capsys.readouterr().out


@pytest.fixture
def subject(
    tiny_backbone: Backbone,
    tiny_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Subject:
    monkeypatch.setattr(forecasting, "libraries_memory", lambda: 0)
    rows, _ = training_rows(tiny_recipe.data, tiny_recipe.seed)
    data = prepare(rows, tiny_backbone.tokenizer, tiny_recipe.data)
    model = attach(tiny_backbone, tiny_recipe.adapter, seed=0)
    return Subject(tiny_recipe, tiny_backbone, model, data, capsys)


def test_a_training_that_does_not_fit_is_not_timed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "find_memory", lambda _device: DeviceMemory(1000, 1000))
    monkeypatch.setattr("lora_kit.preflight.gpus.LENGTH_DIVISORS", (1,))
    monkeypatch.setattr(forecasting, "time_micro_batch", lambda *_: pytest.fail("was timed"))
    found = subject.forecast()
    assert not found.fits
    assert found.to_dict()["probe"] is found.to_dict()["duration"] is None
    assert "this machine has 0.0 GB" in subject.shown(found)


def test_a_training_that_others_leave_no_memory_for_is_not_timed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine would do; the free memory does not, and is what a change has to fit into."""
    device = DeviceMemory(10**12, 1000, (MemoryUser(77, "vllm", 40 * 10**9),))
    monkeypatch.setattr(forecasting, "find_memory", lambda _device: device)
    monkeypatch.setattr("lora_kit.preflight.gpus.LENGTH_DIVISORS", (1,))
    monkeypatch.setattr(forecasting, "time_micro_batch", lambda *_: pytest.fail("was timed"))
    found = subject.forecast()
    assert not found.fits
    shown = subject.shown(found)
    assert "has 1000.0 GB, of which 0.0 GB are free" in shown
    assert "vllm (77) 40.0 GB). Fix: end other processes" in shown
    assert found.to_dict()["available"] == 1000
    assert found.to_dict()["device_memory"] == {
        "total": 10**12,
        "available": 1000,
        "users": ({"process": 77, "name": "vllm", "bytes": 40 * 10**9},),
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="it takes a machine without a GPU")
def test_the_memory_on_a_gpu_is_estimated_without_one(subject: Subject) -> None:
    backbone = subject.recipe.backbone.model_copy(update={"dtype": "auto"})
    recipe = subject.recipe.model_copy(update={"backbone": backbone})
    found = subject.forecast(recipe)
    assert found.fits
    assert found.time is not None
    gpu = found.on_a_gpu
    assert gpu is not None
    assert (gpu.device, gpu.components["libraries"]) == ("cuda", CUDA_BASE)
    share = recipe.training.micro_batch_size or recipe.training.batch_size
    assert gpu.batch.rows == min(share, len(subject.data.examples)), (
        "a GPU takes the whole batch at once"
    )
    assert found.to_dict()["on_a_gpu"]["gpus"][0] == "T4 16 GB"
    assert "on a GPU: " in subject.shown(found)
