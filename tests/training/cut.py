"""Trainings that are interrupted after a step, and their files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from lora_kit import pipeline
from lora_kit.recipe.recipe import Recipe
from lora_kit.training import setup as training_setup

STEPS = 8


def with_training(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def during(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Call `act` after the checkpoint of a step."""

    class Act(TrainerCallback):  # type: ignore[misc]
        def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == step:
                act()

    monkeypatch.setattr(training_setup, "_tensorboard", lambda *_: [Act()])


class CutError(Exception):
    """Stand-in for the end of the process."""


def cut_off(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, run: Path, step: int) -> None:
    """Train until just after the checkpoint of a step."""

    def cut() -> None:
        raise CutError

    with monkeypatch.context() as patched:
        during(patched, step, cut)
        with pytest.raises(CutError):
            pipeline.train(recipe, run)
