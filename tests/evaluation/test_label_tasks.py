"""Evaluation of a multi-label head, and the wrong items of its report."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from lora_kit import pipeline
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import load
from lora_kit.evaluation.aggregates import label_tables
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.item import Item, Outcome
from lora_kit.evaluation.label_grading import grade_labels
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.requests import LabelRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import DataError
from tests.tagging import labels_recipe, write_rows, write_suite

ITEM = Item("1", "1", "", '["a"]', LabelRequest((5,)), targets={"a": 1.0, "b": 0.0})


def test_a_grade_is_of_all_labels_of_the_item() -> None:
    graded = grade_labels(ITEM, Outcome((2.0, -1.0), (True, True)), score="jaccard")
    assert (graded.score, graded.output) == (0.5, '["a", "b"]')
    assert graded.measures["exact_match"] == 0.0
    nll = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))]
    assert graded.measures["loss"] == pytest.approx(np.mean(nll))
    other = grade_labels(ITEM, Outcome(text='["a", "z"]'), score="jaccard")
    assert (other.score, "loss" in other.measures) == (0.5, False)
    none = Item("1", "1", "", "[]", LabelRequest((5,)), targets={"a": 0.0})
    assert grade_labels(none, Outcome((-2.0,), (False,)), score="exact_match").score == 1.0
    assert grade_labels(none, Outcome((float("nan"),), (False,)), score="jaccard").score is None


def test_a_label_that_the_head_does_not_have_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    spec = BackboneSpec(model=str(tiny_encoder), quantization="none", dtype="float32")
    head = load(resolve(spec), spec, HeadOutputs("multi-label", ("bird", "fruit")))
    source = write_rows(tmp_path / "rows.jsonl", [("bird",), ("metal",)])
    suite = Suite.load(write_suite(tmp_path / "suite.yaml", source))
    with pytest.raises(DataError, match=r"row 1: .*not trained on a label.*\(got 'metal'\)"):
        plan_work([suite], head)


def test_a_run_of_labels_from_plan_to_verdict(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base predicts every label; the scores are those of scikit-learn on the ledger."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = labels_recipe(
        tiny_encoder,
        tmp_path,
        adapter={"method": "head"},
        training={"epochs": 20.0, "learning_rate": 0.05},
        evaluation={"arms": ["base", "adapter", "retrieval", "probe"]},
    )
    outcome = pipeline.run(recipe, tmp_path / "run")
    task = outcome.verdict.suites[0].tasks[0]
    assert [baseline.arm for baseline in task.baselines] == ["retrieval", "probe"]
    entries = read_ledger(tmp_path / "run" / "evaluation" / "ledger.parquet")
    tables = {
        arm: label_tables([e for e in entries if e.arm == arm]) for arm in ("base", "adapter")
    }
    assert (tables["base"].predicted == 1).all()
    own = tables["adapter"]
    assert task.adapter == pytest.approx(f1_score(own.true, own.predicted, average="macro"))
    assert task.unit == "macro-F1 of labels"
    measured = {one.name: one for one in task.measures}
    assert {"exact_match", "jaccard", "loss", "micro_f1"} <= set(measured)
    assert measured["mean_average_precision"].adapter == pytest.approx(
        average_precision_score(own.true, own.scores, average="macro")
    )
    assert task.classes is not None
    assert task.classes.confusion is None
    assert [one.label for one in task.classes.adapter.classes] == ["bird", "fruit", "metal"]
    check_verdict(tmp_path / "run" / "evaluation")
    page = (tmp_path / "run" / "evaluation" / "report.html").read_text()
    wrong = {n: int((own.predicted[:, k] != own.true[:, k]).sum()) for k, n in enumerate(own.names)}
    assert any(wrong.values())
    for name, count in wrong.items():
        assert (f"{count} wrong: <bdi>{name}</bdi>" in page) == (count > 0)
    # Texts without any label have no average precision, and the other scores all the same.
    bare = write_suite(tmp_path / "bare.yaml", write_rows(tmp_path / "bare.jsonl", [()] * 6))
    found = pipeline.evaluate(tmp_path / "run", [str(bare)], output=tmp_path / "bare")
    (task,) = found.verdict.suites[0].tasks
    names = {one.name for one in task.measures}
    assert "loss" in names
    assert "mean_average_precision" not in names
    assert task.classes is None
