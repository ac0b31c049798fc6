"""A linear probe: its penalty, its features, and the arm that it is."""

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
from lora_kit.backbone.heads import pad_right
from lora_kit.backbone.load import load
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.arms.probe import Probe
from lora_kit.modeling.linear_probe import STRENGTHS, fitted, mean_states, probed
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from lora_kit.runtime.errors import EvaluationError
from tests.classifying import WORDS, classes_recipe


def test_noise_is_held_down_and_what_rows_of_a_cluster_share_is_not_taken_for_knowledge() -> None:
    random = np.random.default_rng(0)
    clusters = [str(n // 6) for n in range(120)]
    labels = [n // 6 % 2 for n in range(120)]
    # Each cluster has features of its own: they tell a row's class by the rows beside it alone.
    own = np.repeat(random.normal(size=(20, 60)), 6, axis=0) + 0.1 * random.normal(size=(120, 60))
    apart = fitted(own.astype(np.float32), labels, clusters)[-1].C
    assert apart < fitted(own.astype(np.float32), labels)[-1].C
    told = np.array(labels)[:, None] + 0.01 * random.normal(size=(120, 1))
    features = np.hstack([told, random.normal(size=(120, 200))]).astype(np.float32)
    probe = fitted(features, labels, clusters)
    assert probe[-1].C in STRENGTHS
    assert (probe.predict(features) == labels).mean() > 0.95


def test_a_class_of_one_row_leaves_the_usual_penalty() -> None:
    features = np.eye(5, dtype=np.float32)
    assert fitted(features, [0, 0, 0, 0, 1])[-1].C == 1.0


@pytest.mark.parametrize("clusters", [["a"] * 6 + list("bbccdd"), ["a"] * 6 + ["b"] * 6])
def test_classes_that_clusters_do_not_share_leave_the_usual_penalty(clusters: list[str]) -> None:
    """Without the cluster, rows of one class are left, from which nothing can be fitted."""
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(features, [0] * 6 + [1] * 6, clusters)[-1].C == 1.0


def test_parts_without_which_one_class_is_left_leave_the_usual_penalty() -> None:
    """Both classes have rows of two clusters; the one in which they meet is left out once."""
    clusters, labels = ["g0"] * 3 + ["g1"] * 2 + ["g2"], ["a"] * 4 + ["b"] * 2
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(features, labels, clusters)[-1].C == 1.0


def test_rows_that_stand_class_by_class_are_looked_at_all_over(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_kit.modeling.linear_probe.MOST", 20)
    recipe = classes_recipe(tiny_encoder, tmp_path)
    backbone = load(resolve(recipe.backbone), recipe.backbone, ("a", "b"))
    known = [(f"{'old' if n < 30 else 'new'} {n}", str(n < 30)) for n in range(60)]
    found = probed(backbone, known, known[:2], 32, [str(n) for n in range(60)])
    assert found.shape == (2,)


def test_features_are_means_whatever_stands_beside_them(tiny_encoder: Path, tmp_path: Path) -> None:
    recipe = classes_recipe(tiny_encoder, tmp_path)
    backbone = load(resolve(recipe.backbone), recipe.backbone, ("a", "b"))
    rows = [(5, 6, 7, 8, 9), (5, 6)]
    found = mean_states(backbone, rows)
    with torch.no_grad():
        states = backbone.model.base_model(input_ids=torch.tensor([rows[1]])).last_hidden_state
    assert np.allclose(found[1], states[0].mean(dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_arm_is_the_regression_on_the_frozen_backbone(
    tiny_encoder: Path, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the trained adapter switched off."""
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
    assert [rival.arm for rival in task.rivals] == ["probe"]
    found = {e.item: e.log_likelihoods for e in evaluation.read_entries() if e.arm == "probe"}
    assert len(found) == 12
    backbone = open_run(run).backbone
    plain = load(resolve(recipe.backbone), recipe.backbone, backbone.head.classes)  # type: ignore[union-attr]
    texts = [f"number {n} of {WORDS['fruit'].split()[n % 3]}s" for n in range(5)]
    ids = [plain.tokenizer(text)["input_ids"] for text in texts]
    probe = fitted(*_known(recipe, plain), weights="balanced" if weights == "balanced" else None)
    wanted = log_softmax(probe.decision_function(mean_states(plain, ids)), axis=1)
    for number in range(5):
        assert found[f"fruit/{number}"] == pytest.approx(tuple(wanted[number]), abs=1e-3)


def test_of_two_classes_the_one_row_is_the_second_ones(tiny_encoder: Path, tmp_path: Path) -> None:
    recipe = classes_recipe(tiny_encoder, tmp_path)
    backbone = load(resolve(recipe.backbone), recipe.backbone, ("a", "b"))
    model = attach(backbone, recipe.adapter, 0)
    rows = [(5, 6, 7), (9, 8), (11, 5, 6, 9), (20, 21)]
    states = mean_states(backbone, rows)
    regression = fitted(states, [0, 1, 0, 1])
    batch = pad_right(rows, backbone.tokenizer.pad_token_id)
    found = Probe(backbone, model, regression)(**batch).logits.log_softmax(dim=-1)
    assert np.allclose(found.numpy(), regression.predict_log_proba(states), atol=1e-5)


def _known(recipe: Recipe, backbone: object) -> tuple[np.ndarray, list[int], list[str]]:
    from lora_kit.data.dataset import prepare, training_rows
    from lora_kit.data.labelled import classes_of

    rows, _ = training_rows(recipe.data, recipe.seed)
    classes = ("bird", "fruit", "metal")
    data = prepare(rows, backbone.tokenizer, recipe.data, classes=classes)  # type: ignore[attr-defined]
    states = mean_states(backbone, [e.input_ids for e in data.examples])  # type: ignore[arg-type]
    return states, classes_of(data), [e.cluster for e in data.examples]


def test_what_has_no_classes_or_no_rows_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    recipe = classes_recipe(tiny_encoder, tmp_path, training={"epochs": 0.2})
    pipeline.train(recipe, tmp_path / "run")
    with pytest.raises(EvaluationError, match="arm probe needs a run"):
        pipeline.evaluate(tmp_path / "run" / "adapter", recipe.evaluation.suites, arms=["probe"])
    rows = Path(recipe.data.train[0].source)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(EvaluationError, match=r"probe: the rows of data\.train differ"):
        pipeline.evaluate(tmp_path / "run", arms=["probe"])
    language_model: Any = SimpleNamespace(adapter=tmp_path, session=None)
    with pytest.raises(EvaluationError, match="arm probe: chooses between classes"):
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
