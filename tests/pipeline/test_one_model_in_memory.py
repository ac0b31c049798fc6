"""The model of a session is freed before a merged model is loaded for evaluation."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from lora_kit.evaluation.arms import models
from lora_kit.merging.reloaded import ComputeSettings
from lora_kit.pipeline import evaluate, merge, train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs import session as sessions
from tests.merging.in_process import in_this_process

QUIZ = """
name: quiz
role: retention
tasks:
  - {name: prose, kind: loss, source: python-reference, limit: 10, max_length: 64, margin: 2}
"""


@in_this_process()
def test_only_one_model_is_in_memory_while_a_merged_model_is_loaded(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    value = tiny_recipe.model_dump(mode="json")
    value["backbone"]["quantization"] = "nf4"
    value["merge"]["base"] = "both"
    value["evaluation"]["suites"] = [str(tmp_path / "quiz.yaml")]
    session = train(Recipe.model_validate(value), tmp_path / "run").session
    merge(session)
    loaded: list[weakref.ref[Any]] = [weakref.ref(session.backbone.model)]
    alive: list[int] = []
    load, load_merged = sessions.load, models.load_merged

    def watched(*arguments: Any) -> Any:
        backbone = load(*arguments)
        loaded.append(weakref.ref(backbone.model))
        return backbone

    def counting(directory: Path, settings: ComputeSettings) -> Any:
        alive.append(sum(one() is not None for one in loaded))
        model = load_merged(directory, settings)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(sessions, "load", watched)
    monkeypatch.setattr(models, "load_merged", counting)
    first = evaluate(session, arms=["merged", "merged-original"], no_cache=True).verdict
    assert alive == [0, 0]
    # A later stage finds the model again.
    gc.collect()
    assert [one() is not None for one in loaded] == [False] * 3
    assert session.backbone.model.dtype == session.model.dtype
    assert evaluate(session, no_cache=True).verdict.tasks[0][1].base == first.tasks[0][1].base
