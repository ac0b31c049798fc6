"""Linear probe: penalty, features, and the probe as an arm."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax

from lora_kit import pipeline
from lora_kit.adapter.attach import attach
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs, pad_right
from lora_kit.backbone.load import load
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.arms.probe import ProbeModel
from lora_kit.modeling.linear_probe import (
    C_VALUES,
    fit_linear_probe,
    logistic_map,
    mean_hidden_states,
    score_linear_probe,
)
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from lora_kit.runtime.errors import EvaluationError
from tests.classifying import WORDS, classes_recipe


def test_the_penalty_is_strong_for_noise_and_for_features_shared_only_within_clusters() -> None:
    random = np.random.default_rng(0)
    clusters = [str(n // 6) for n in range(120)]
    labels = [n // 6 % 2 for n in range(120)]
    # Each cluster has features of its own: they tell a row's class by the rows beside it alone.
    own = np.repeat(random.normal(size=(20, 60)), 6, axis=0) + 0.1 * random.normal(size=(120, 60))
    apart = fit_linear_probe(own.astype(np.float32), labels, clusters)[-1].C
    assert apart < fit_linear_probe(own.astype(np.float32), labels)[-1].C
    told = np.array(labels)[:, None] + 0.01 * random.normal(size=(120, 1))
    features = np.hstack([told, random.normal(size=(120, 200))]).astype(np.float32)
    probe = fit_linear_probe(features, labels, clusters)
    assert probe[-1].C in C_VALUES
    assert (probe.predict(features) == labels).mean() > 0.95


def test_a_class_with_one_row_gives_the_default_penalty() -> None:
    features = np.eye(5, dtype=np.float32)
    assert fit_linear_probe(features, [0, 0, 0, 0, 1])[-1].C == 1.0


TWO = HeadOutputs("classification", ("a", "b"))


@pytest.mark.parametrize("clusters", [["a"] * 6 + list("bbccdd"), ["a"] * 6 + ["b"] * 6])
def test_folds_with_one_class_give_the_default_penalty(clusters: list[str]) -> None:
    """Without the held-out cluster, the training rows have only one class."""
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_linear_probe(features, [0] * 6 + [1] * 6, clusters)[-1].C == 1.0


def test_a_training_part_with_one_class_gives_the_default_penalty() -> None:
    """Both classes have rows in two clusters; one fold holds out the shared cluster."""
    clusters, labels = ["g0"] * 3 + ["g1"] * 2 + ["g2"], ["a"] * 4 + ["b"] * 2
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_linear_probe(features, labels, clusters)[-1].C == 1.0


def test_rows_sorted_by_class_are_sampled_from_all_positions(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_kit.modeling.linear_probe.MAX_TEXTS", 20)
    recipe = classes_recipe(tiny_encoder, tmp_path)
    backbone = load(
        resolve(recipe.backbone), recipe.backbone, HeadOutputs("classification", ("a", "b"))
    )
    known = [(f"{'old' if n < 30 else 'new'} {n}", str(n < 30)) for n in range(60)]
    found = score_linear_probe(backbone, known, known[:2], 32, [str(n) for n in range(60)])
    assert found.shape == (2,)


def test_features_are_means_independent_of_padding(tiny_encoder: Path, tmp_path: Path) -> None:
    recipe = classes_recipe(tiny_encoder, tmp_path)
    backbone = load(
        resolve(recipe.backbone), recipe.backbone, HeadOutputs("classification", ("a", "b"))
    )
    rows = [(5, 6, 7, 8, 9), (5, 6)]
    found = mean_hidden_states(backbone, rows)
    with torch.no_grad():
        states = backbone.model.base_model(input_ids=torch.tensor([rows[1]])).last_hidden_state
    assert np.allclose(found[1], states[0].mean(dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_arm_is_the_regression_on_the_frozen_backbone(
    tiny_encoder: Path, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with the adapter disabled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = classes_recipe(
        tiny_encoder,
        tmp_path,
        classification={"class_weights": weights},
        evaluation={"arms": ["base", "adapter", "probe"]},
    )
    run = tmp_path / "run"
    pipeline.train(recipe, run)
    evaluation = pipeline.evaluate(run)
    task = evaluation.verdict.suites[0].tasks[0]
    assert [baseline.arm for baseline in task.baselines] == ["probe"]
    found = {e.item: e.log_likelihoods for e in evaluation.read_entries() if e.arm == "probe"}
    assert len(found) == 12
    backbone = open_run(run).backbone
    plain = load(resolve(recipe.backbone), recipe.backbone, backbone.head.outputs)  # type: ignore[union-attr]
    texts = [f"number {n} of {WORDS['fruit'].split()[n % 3]}s" for n in range(5)]
    ids = [plain.tokenizer(text)["input_ids"] for text in texts]
    probe = fit_linear_probe(
        *_known(recipe, plain), weights="balanced" if weights == "balanced" else None
    )
    wanted = log_softmax(probe.decision_function(mean_hidden_states(plain, ids)), axis=1)
    for number in range(5):
        assert found[f"fruit/{number}"] == pytest.approx(tuple(wanted[number]), abs=1e-3)


def test_a_binary_probe_has_one_logit_row_for_the_second_class(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    recipe = classes_recipe(tiny_encoder, tmp_path)
    backbone = load(
        resolve(recipe.backbone), recipe.backbone, HeadOutputs("classification", ("a", "b"))
    )
    model = attach(backbone, recipe.adapter, 0)
    rows = [(5, 6, 7), (9, 8), (11, 5, 6, 9), (20, 21)]
    states = mean_hidden_states(backbone, rows)
    regression = fit_linear_probe(states, [0, 1, 0, 1])
    batch = pad_right(rows, backbone.tokenizer.pad_token_id)
    found = ProbeModel(backbone, model, logistic_map(regression))(**batch).logits.log_softmax(
        dim=-1
    )
    assert np.allclose(found.numpy(), regression.predict_log_proba(states), atol=1e-5)


def _known(recipe: Recipe, backbone: object) -> tuple[np.ndarray, list[int], list[str]]:
    from lora_kit.data.dataset import prepare
    from lora_kit.data.head_targets import class_indices
    from tests.training_rows import training_rows

    rows, _ = training_rows(recipe.data, recipe.seed)
    classes = HeadOutputs("classification", ("bird", "fruit", "metal"))
    data = prepare(rows, backbone.tokenizer, recipe.data, outputs=classes)  # type: ignore[attr-defined]
    states = mean_hidden_states(backbone, [e.input_ids for e in data.examples])  # type: ignore[arg-type]
    return states, class_indices(data), [e.cluster for e in data.examples]


def test_models_without_classes_or_rows_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    recipe = classes_recipe(tiny_encoder, tmp_path, training={"epochs": 0.2})
    pipeline.train(recipe, tmp_path / "run")
    with pytest.raises(EvaluationError, match="arms: probe needs the recipe and the data of a run"):
        pipeline.evaluate(tmp_path / "run" / "adapter", recipe.evaluation.suites, arms=["probe"])
    rows = Path(recipe.data.train[0].source)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(EvaluationError, match=r"probe: the rows of data\.train differ"):
        pipeline.evaluate(tmp_path / "run", arms=["probe"])
    language_model: Any = SimpleNamespace(adapter=tmp_path, session=None)
    with pytest.raises(EvaluationError, match="arms: probe needs a classifier"):
        loaded_arms(language_model, ["base", "adapter", "probe"])
    for objective in ("sft", "reward"):
        source = "stdlib-docstring-pairs" if objective == "reward" else "stdlib-docstrings"
        with pytest.raises(ValidationError, match=r"evaluation\.arms: .*probe"):
            Recipe.model_validate(
                {
                    "name": "x",
                    "backbone": {"model": "m", "quantization": "none"},
                    "data": {"train": [{"source": source}]},
                    "training": {"objective": objective},
                    "evaluation": {"arms": ["base", "adapter", "probe"]},
                }
            )
