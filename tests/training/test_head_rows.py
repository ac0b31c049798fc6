"""Rows of a head that are added or weighed: pseudo-labels, a target domain, changed copies."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from lora_kit import pipeline
from lora_kit.data.dataset import open_rows
from lora_kit.data.wordnet import wordnet_digest
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.recipe.augmentation import AugmentationSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from lora_kit.runtime.errors import DataError, EvaluationError
from lora_kit.training.head_rows.augmentation import augmented_rows, changed_text
from lora_kit.training.head_rows.domain_weights import density_ratios
from lora_kit.training.head_rows.pseudo_labels import Check, PseudoLabels, refuse_harm
from lora_kit.training.rows_of_run import rows_of_run
from tests.classifying import WORDS, classes_recipe
from tests.wordnet_files import write_wordnet


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _texts(path: Path, words: str, count: int = 24) -> dict[str, Any]:
    """Write texts of some kinds of words in turn; return their source."""
    kinds = words.split()
    rows = [
        {"text": f"number {n + 50} of {WORDS[kinds[n % len(kinds)]].split()[n % 3]}s"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": str(path)}


def _recipe(model: Path, folder: Path, data: dict[str, Any], **changes: Any) -> Recipe:
    changes.setdefault("adapter", {"method": "head"})
    document = classes_recipe(model, folder, **changes).model_dump(mode="json")
    document["data"] |= data
    document["data"]["audit"] |= {"duplicates": 1.0, "label_error_folds": "clusters"}
    return Recipe.model_validate(document)


def test_texts_that_hurt_are_refused_and_those_that_do_not_help_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hits = np.ones(20, bool)
    worse = hits.copy()
    worse[:6] = False
    # Six lost and none won: 1/64.
    check = Check.of(hits, worse)
    assert (check.without, check.with_them, check.p) == (1.0, 0.7, 0.015625)
    found = PseudoLabels(9, {"a": 0.9, "b": None}, (("x:1", "a", 0.95),), check)
    with pytest.raises(DataError, match="hurt on 20 held-out rows"):
        refuse_harm(found)
    same = Check.of(hits, hits)
    assert same.p == 1.0
    refuse_harm(PseudoLabels(9, found.thresholds, found.labels, same))
    assert "no better with them" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match="no class reaches it"):
        refuse_harm(PseudoLabels(9, found.thresholds, (), same))
    assert PseudoLabels.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_pseudo_labelled_texts_are_trained_on_recorded_and_left_out_of_the_arm_plain(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    texts = _texts(tmp_path / "texts.jsonl", "fruit metal")
    unlabeled = {"texts": [texts], "precision": 0.6, "rounds": 2, "weight": 0.5}
    recipe = _recipe(tiny_encoder, tmp_path, {"unlabeled": unlabeled})
    arms = recipe.evaluation.model_copy(update={"arms": ["base", "adapter", "plain"]})
    recipe = recipe.model_copy(update={"evaluation": arms})
    trained = pipeline.train(recipe, tmp_path / "run")
    found = json.loads(trained.run.self_distillation.read_text())["pseudo_labels"]
    assert 0 < len(found["labels"]) <= found["texts"] == 24
    assert set(found["thresholds"]) == set(WORDS)
    own = {name: one for name, one in found["thresholds"].items() if one is not None}
    assert all(one >= own[label] for _, label, one in found["labels"])
    assert trained.data is not None
    assert len(trained.data.rows) == 24 + len(found["labels"])
    assert len(trained.data.sources) == 24
    # Again from the record, not from another search.
    session = trained.session
    data = rows_of_run(session)
    assert data.prepared.digest == trained.run.load_record()["data"]["digest"]
    pipeline.evaluate(session, stopping="none")
    verdict = read_verdict(trained.run.evaluation).verdict
    (baseline,) = verdict.suites[0].tasks[0].baselines
    assert baseline.arm == "plain"
    plain = json.loads((trained.run.plain / "run.json").read_text())
    assert plain["data"]["rows"] == 24
    # As many steps, up to the one that an epoch ends with.
    steps = (trained.result.steps, plain["training"]["steps"])
    assert steps[0] > 6
    assert abs(steps[0] - steps[1]) <= 1
    # A text that was trained on and is gone cannot be trained on again.
    Path(texts["source"]).write_text('{"text": "one heap"}\n')
    with pytest.raises(DataError, match="a text that was trained on is gone"):
        rows_of_run(open_run(tmp_path / "run"))


def test_an_arm_without_changes_needs_changes(tiny_encoder: Path, tmp_path: Path) -> None:
    pipeline.train(_recipe(tiny_encoder, tmp_path, {}), tmp_path / "run")
    with pytest.raises(EvaluationError, match=r"is the training without data\.unlabeled"):
        pipeline.evaluate(tmp_path / "run", arms=["plain"])


def test_a_ratio_of_densities_is_that_of_two_normal_distributions() -> None:
    generator = np.random.default_rng(0)
    source, target = generator.normal(0, 1, 300), generator.normal(1, 1, 100)
    values = np.concatenate([source, target])
    densities = norm.pdf(values, 1), norm.pdf(values, 0)
    # The posterior of the classes, at which a classifier arrives with their shares.
    posterior = 100 * densities[0] / (100 * densities[0] + 300 * densities[1])
    found = density_ratios(posterior, np.arange(400) >= 300, 1e9)
    expected = norm.pdf(source, 1) / norm.pdf(source, 0)
    assert found == pytest.approx(expected / expected.mean())
    clipped = density_ratios(posterior, np.arange(400) >= 300, 2.0)
    assert clipped.max() / clipped.min() == pytest.approx(4.0)
    assert clipped.mean() == pytest.approx(1.0)


def test_rows_like_the_target_weigh_more(tiny_encoder: Path, tmp_path: Path) -> None:
    target = _texts(tmp_path / "target.jsonl", "fruit", 30)
    recipe = _recipe(tiny_encoder, tmp_path, {"reweight": {"target": [target], "clip": 4.0}})
    trained = pipeline.train(recipe, tmp_path / "run")
    weights = np.array(json.loads(trained.run.self_distillation.read_text())["weights"])
    labels = np.array([row.label for row in open_rows(recipe.data, 0, "classification")])
    assert weights.mean() == pytest.approx(1.0)
    assert weights[labels == "fruit"].mean() > 1.3 * weights[labels != "fruit"].mean()
    # The loss is weighed: that of a plain training differs, on the same rows.
    plain = pipeline.train(_recipe(tiny_encoder, tmp_path, {}), tmp_path / "plain")
    assert trained.result.first_loss != plain.result.first_loss
    _texts(tmp_path / "target.jsonl", "fruit", 19)
    with pytest.raises(DataError, match=r"too few texts .*got 19, needed: 20"):
        pipeline.train(recipe, tmp_path / "few")


def test_changed_copies_keep_words_and_lines() -> None:
    text = "def add(one, two):\n    return one + two\n"
    moved = changed_text(text, AugmentationSpec(dropout=0.0, swaps=0.9), random.Random(1))
    assert Counter(moved.split()) == Counter(text.split())
    assert moved != text.strip()
    assert [len(line) - len(line.lstrip()) for line in moved.splitlines()] == [0, 4]
    generator, words = random.Random(0), " ".join(map(str, range(2_000)))
    fewer = changed_text(words, AugmentationSpec(dropout=0.2, swaps=0.0), generator).split()
    assert 0.77 < len(fewer) / 2_000 < 0.83
    assert fewer == sorted(fewer, key=int)
    assert changed_text("alone", AugmentationSpec(dropout=0.9), generator) == "alone"
    # Short texts have a change, too.
    copies = [changed_text("two words", AugmentationSpec(), generator) for _ in range(50)]
    assert set(copies) == {"two", "words"}
    spec = AugmentationSpec(dropout=0, swaps=0, synonyms=1.0)
    known = {"large": ("big",), "slope": ("incline", "tilt")}
    for _ in range(9):
        found = changed_text('A "Large" slope,\n  enlarge', spec, generator, known)
        assert found in {'A "Big" incline,\n  enlarge', 'A "Big" tilt,\n  enlarge'}
    half = AugmentationSpec(dropout=0, swaps=0, synonyms=0.5)
    assert 0.4 < changed_text("large " * 500, half, generator, known).count("big") / 500 < 0.6


def test_synonyms_are_those_of_the_wordnet_that_is_installed(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path)))
    rows = open_rows(_recipe(tiny_encoder, tmp_path, {}).data, 0, "classification")
    spec = AugmentationSpec(dropout=0, swaps=0, synonyms=1.0)
    same, _ = augmented_rows(rows, spec, 0)
    # No word of these rows has a synonym there.
    assert [row.messages for row in same] == [row.messages for row in rows]
    with (tmp_path / "data.adv").open("a") as stream:
        stream.write("  another version\n")
    wordnet_digest.cache_clear()
    assert augmented_rows(rows, spec, 0)[0].digest() != same.digest()


def test_copies_are_of_training_rows_alone(tiny_encoder: Path, tmp_path: Path) -> None:
    changes = {"augmentation": {"copies": 2, "dropout": 0.3}}
    recipe = _recipe(tiny_encoder, tmp_path, changes)
    held_out = recipe.data.train[0]
    data = recipe.data.model_copy(update={"validation": [held_out]})
    recipe = recipe.model_copy(update={"data": data})
    trained = pipeline.train(recipe, tmp_path / "run")
    assert trained.data is not None
    rows = list(trained.data.rows)
    assert len(rows) == 3 * 24
    assert [row.label for row in rows[:24]] == [row.label for row in rows[24:48]]
    assert {row.cluster for row in rows[24:]} == {row.cluster for row in rows[:24]}
    assert len(trained.data.held_out_rows or ()) == 24
    spec = recipe.data.augmentation
    assert spec is not None
    own = trained.data.sources
    (again, origins), (other, _) = (augmented_rows(own, spec, seed) for seed in (0, 1))
    assert origins.tolist() == [*range(24), *range(24)]
    assert list(again) == rows[24:]
    assert again.digest() != other.digest()
    assert list(other) != rows[24:]
