"""The model of a session is freed before a merged model is loaded for evaluation."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from lora_kit.evaluation.arms import models
from lora_kit.merging.reloaded import ComputeSettings
from lora_kit.pipeline import evaluate, loaded_inputs, merge, train
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
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load, load_merged = sessions.load, models.load_merged

    def watched(*arguments: Any) -> Any:
        alive.append(sum(one() is not None for one in loaded))
        backbone = load(*arguments)
        loaded.append(weakref.ref(backbone.model))
        return backbone

    monkeypatch.setattr(loaded_inputs, "load", watched)
    monkeypatch.setattr(sessions, "load", watched)
    session = train(Recipe.model_validate(value), tmp_path / "run").session
    assert alive == [0, 0]
    merge(session)
    assert session.model is not None
    alive.clear()

    def counting(directory: Path, settings: ComputeSettings) -> Any:
        alive.append(sum(one() is not None for one in loaded))
        model = load_merged(directory, settings)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "load_merged", counting)
    first = evaluate(session, arms=["merged", "merged-original"], no_cache=True).verdict
    assert alive == [0, 0]
    # A later stage finds the model again.
    gc.collect()
    assert not any(one() is not None for one in loaded)
    assert session.backbone.model.dtype == session.model.dtype
    assert evaluate(session, no_cache=True).verdict.tasks[0][1].base == first.tasks[0][1].base


def resident() -> tuple[int, int]:
    """Return the resident bytes of this process, now and at their peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Vm")}
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


@pytest.mark.slow
@in_this_process()
def test_the_memory_of_an_evaluation_is_that_of_one_model(
    tiny: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second model takes the place of the first. Measured: a peak of 1.5 times the weights."""
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8}
    config = LlamaConfig.from_pretrained(tiny, **wide, num_key_value_heads=8, head_dim=128)
    shutil.copytree(tiny, tmp_path / "wide")
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    weights = (tmp_path / "wide" / "model.safetensors").stat().st_size
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    value = tiny_recipe.model_dump(mode="json")
    value["backbone"]["model"] = str(tmp_path / "wide")
    value["data"]["train"][0]["limit"] = 4
    value["evaluation"]["suites"] = [str(tmp_path / "quiz.yaml")]
    session = train(Recipe.model_validate(value), tmp_path / "run").session
    merge(session)
    session.close()
    gc.collect()
    without = resident()[0]
    load_merged, at_load = models.load_merged, []

    def measured(*arguments: Any) -> Any:
        at_load.append(resident()[0])
        return load_merged(*arguments)

    monkeypatch.setattr(models, "load_merged", measured)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    evaluate(session, arms=["merged"], no_cache=True)
    peak = resident()[1] - without
    assert at_load[0] - without < 0.3 * weights
    assert 0.9 * weights < peak < 1.8 * weights
