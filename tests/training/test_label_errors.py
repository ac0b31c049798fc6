"""Label errors of a run: shown, weighed down or dropped, recorded, and never without a word."""

import io
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from lora_kit import pipeline
from lora_kit.data.dataset import open_rows
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Message, Row
from lora_kit.preflight.make_plan import make_plan
from lora_kit.preflight.show import show_plan
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.training.head_losses.classes import ClassLoss
from lora_kit.training.head_rows.label_errors import label_error_facts, label_errors_of
from lora_kit.training.head_rows.probe_texts import row_groups
from lora_kit.training.heads import HeadTrainer
from lora_kit.training.rows_of_run import rows_of_run
from tests.classifying import WORDS, classes_recipe

# Rows whose label is exchanged.
WRONG = (3, 20, 33)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _recipe(model: Path, folder: Path, action: str, **changes: Any) -> Recipe:
    audit = {"label_errors": action, "leakage": 1.0, "duplicates": 1.0}
    recipe = classes_recipe(model, folder, **changes)
    document = recipe.model_dump(mode="json")
    document["data"]["audit"] |= audit
    path = Path(document["data"]["train"][0]["source"])
    names = list(WORDS)
    rows = []
    for number in range(48):
        label = names[number % 3]
        words = list(product(WORDS[label].split(), repeat=3))[number // 3]
        text = " ".join(words)
        label = names[(number + 1) % 3] if number in WRONG else label
        rows.append({"id": str(number), "text": text, "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.model_validate(document)


def test_a_plan_ranks_the_suspects(tiny_encoder: Path, tmp_path: Path) -> None:
    plan = make_plan(_recipe(tiny_encoder, tmp_path, "show", adapter={"method": "head"}))
    value = plan.to_dict()
    found = value["label_errors"]
    assert (found["action"], found["rows"], found["unknown"]) == ("show", 48, 0)
    suspects = found["suspects"]
    assert set(WRONG) <= {one["row"] for one in suspects}
    assert len(suspects) < 8
    probabilities = [one["probability"] for one in suspects]
    assert probabilities == sorted(probabilities)
    names = list(WORDS)
    wrong = next(one for one in suspects if one["row"] == WRONG[0])
    assert wrong["origin"].endswith(f"train.jsonl:{WRONG[0] + 1}")
    assert wrong["label"] == names[(WRONG[0] + 1) % 3]
    assert wrong["suggestion"] == names[WRONG[0] % 3]
    assert (plan.rows, value["audit"]["label_errors"]["suspects"]) == (48, len(suspects))
    # Wide enough for the path, which would be folded.
    console = Console(file=io.StringIO(), width=400)
    show_plan(plan, console)
    shown = console.file.getvalue()
    assert f"{len(suspects)} of 48 labels" in shown
    assert "train.jsonl:4" in shown


def test_dropped_rows_are_recorded_and_stay_dropped(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(tiny_encoder, tmp_path, "drop", adapter={"method": "head"})
    trained = pipeline.train(recipe, tmp_path / "run")
    record = trained.run.load_record()
    errors = record["audit"]["label_errors"]
    left = 48 - errors["dropped"]
    assert (errors["action"], errors["rows"], record["data"]["rows"]) == ("drop", 48, left)
    listed = json.loads((tmp_path / "run" / "label_errors.json").read_text())
    assert set(WRONG) <= {one["row"] for one in listed["suspects"]}
    assert len(listed["suspects"]) == errors["dropped"]
    # Another search is neither needed nor made: the file says which rows were left out.
    monkeypatch.setattr("lora_kit.training.head_rows.label_errors.find_label_errors", None)
    session = open_run(tmp_path / "run")
    assert label_error_facts(session.run)["Label errors"].startswith(f"{48 - left} of 48 training")
    data = rows_of_run(session)
    assert (len(data.rows), len(data.sources)) == (left, left)
    assert data.prepared.digest == record["data"]["digest"]
    assert pipeline.train(recipe, tmp_path / "run", resume=True).result.steps
    rows = open_rows(recipe.data, recipe.seed, "classification")
    with pytest.raises(DataError, match="those of other rows"):
        label_errors_of(recipe, rows[:40], session.backbone, session.run)


@pytest.mark.parametrize("adapter", [{"method": "head"}, {}], ids=["head", "lora"])
def test_weighed_down_rows_have_the_weight_of_their_label(
    tiny_encoder: Path, tmp_path: Path, adapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One step over all rows, so that its loss is that of the untrained model.
    training = {"batch_size": 48, "epochs": 1.0}
    losses, seen = {}, []
    of_rows, summed = ClassLoss.of_rows, HeadTrainer.summed_loss

    def recording(self: ClassLoss, logits: Any, targets: Any) -> Any:
        # Not the loss of validation rows.
        if logits.requires_grad:
            seen.append((logits.detach(), targets))
        return of_rows(self, logits, targets)

    def weighing(self: HeadTrainer, model: Any, inputs: Any) -> Any:
        found = summed(self, model, inputs)
        seen[-1] += (inputs.get("row_weights", torch.ones(len(seen[-1][1]))),)
        return found

    monkeypatch.setattr(ClassLoss, "of_rows", recording)
    monkeypatch.setattr(HeadTrainer, "summed_loss", weighing)
    for action in ("weigh_down", "show"):
        recipe = _recipe(tiny_encoder, tmp_path, action, adapter=adapter, training=training)
        seen.clear()
        losses[action] = pipeline.train(recipe, tmp_path / action).result.first_loss
        logits, targets, weights = (torch.cat(one) for one in zip(*seen, strict=True))
        each = cross_entropy(logits, targets, reduction="none")
        assert losses[action] == pytest.approx(float((weights * each).sum() / weights.sum()), 1e-4)
        errors = json.loads((tmp_path / action / "label_errors.json").read_text())
        own = sorted(one["probability"] for one in errors["suspects"])
        own = own if action == "weigh_down" else []
        expected = [*own, *[1.0] * (48 - len(own))]
        assert sorted(weights.tolist()) == pytest.approx(expected)
    assert losses["weigh_down"] != losses["show"]


def test_a_class_is_not_dropped_whole(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(tiny_encoder, tmp_path, "drop")
    rows = list(open_rows(recipe.data, recipe.seed, "classification"))
    fruits = np.flatnonzero([row.label == "fruit" for row in rows])
    monkeypatch.setattr("lora_kit.data.audit.label_errors.MAX_SHARE", 1.0)
    monkeypatch.setattr(
        "lora_kit.training.head_rows.label_errors._known_suspects", lambda *_: np.asarray(fruits)
    )
    with pytest.raises(DataError, match=r"without a training row .got 'fruit'"):
        pipeline.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_probe_that_doubts_many_labels_changes_none(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lora_kit.training.head_rows.label_errors._known_suspects", lambda *_: np.arange(1, 48, 3)
    )
    said = r"weigh_down would change too many rows \(got 16 of 48, allowed: 30%\)"
    with pytest.raises(DataError, match=said):
        make_plan(_recipe(tiny_encoder, tmp_path, "weigh_down"))
    shown = make_plan(_recipe(tiny_encoder, tmp_path, "show", adapter={"method": "head"}))
    assert shown.on_backbone
    errors = shown.on_backbone.audit.label_errors
    assert errors
    assert errors.is_doubtful


def test_groups_are_clusters_and_duplicates_joined() -> None:
    texts = ["apple", "apple", "pear", "plum", "iron"]
    clusters = ["a", "b", "b", "c", "c"]
    rows = Rows.of(
        "rows",
        [
            # Two labels of one text do not make it two texts.
            Row(f"r:{n}", cluster, (Message("user", text), Message("assistant", str(n))), label="x")
            for n, (text, cluster) in enumerate(zip(texts, clusters, strict=True))
        ],
    )
    joined = row_groups(rows, "clusters").tolist()
    assert joined[0] == joined[1] == joined[2]
    assert joined[3] == joined[4] != joined[0]
    apart = row_groups(rows, "rows").tolist()
    assert apart[0] == apart[1]
    assert len(set(apart)) == 4


def test_rows_of_one_cluster_give_no_folds(tiny_encoder: Path, tmp_path: Path) -> None:
    recipe = _recipe(tiny_encoder, tmp_path, "show")
    path = Path(recipe.data.train[0].source)
    rows = [json.loads(line) | {"cluster": 1} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"label_errors: .*48 rows in 1 groups.*folds=rows"):
        make_plan(recipe)


def test_a_search_without_classes_or_cleanlab_is_refused(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = _recipe(tiny_encoder, tmp_path, "show").model_dump(mode="json")
    with pytest.raises(RecipeError, match=r"data\.audit\.label_errors: only rows of a class"):
        Recipe.load(_written(tmp_path, document | {"training": {"objective": "sft"}}))
    folds = {"label_errors": "none", "label_error_folds": "rows"}
    other = document | {"data": document["data"] | {"audit": folds}}
    with pytest.raises(RecipeError, match=r"label_error_folds: has no effect"):
        Recipe.load(_written(tmp_path, other))
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    recipe = Recipe.model_validate(document)
    for start in (make_plan, pipeline.train):
        with pytest.raises(DataError, match="needs cleanlab"):
            start(recipe)


def _written(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "other.yaml"
    path.write_text(json.dumps(document))
    return path
