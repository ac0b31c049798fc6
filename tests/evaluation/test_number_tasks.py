"""Evaluation of a regression's head."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score

from lora_kit import pipeline
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.scored import read_numbers
from lora_kit.evaluation.comparisons import compare, task_score
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.ledger import Entry, read_ledger
from lora_kit.evaluation.pairs import pair
from lora_kit.evaluation.requests import NumberRequest
from lora_kit.evaluation.stopping import LookPlan
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import DataError, EvaluationError
from tests.scoring import numbers_recipe, write_rows, write_suite


@pytest.fixture
def head(tiny_encoder: Path) -> Backbone:
    spec = BackboneSpec(model=str(tiny_encoder), quantization="none", dtype="float32")
    return load(resolve(spec), spec, HeadOutputs("regression", ("score",)))


def asked(head: Backbone, folder: Path, numbers: tuple[int, ...] = (1, 4), **own: Any) -> Any:
    source = write_rows(folder / "rows.jsonl", numbers)
    return plan_work([Suite.load(write_suite(folder / "suite.yaml", source, **own))], head)[0]


def test_an_item_is_the_text_with_its_number(head: Backbone, tmp_path: Path) -> None:
    item = asked(head, tmp_path).task.items[1]
    assert isinstance(item.request, NumberRequest)
    assert (item.reference, dict(item.targets)) == ("140", {"score": 140.0})


def test_items_that_the_head_cannot_answer_are_refused(
    head: Backbone, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"all items have the same number \(got score 110 in 2"):
        asked(head, tmp_path, (1, 1))
    source = write_rows(tmp_path / "two.jsonl", [1, 2], ["price"])
    suite = Suite.load(write_suite(tmp_path / "two.yaml", source))
    with pytest.raises(DataError, match=r"other numbers than those of the head .*\(got price\)"):
        plan_work([suite], head)
    with pytest.raises(EvaluationError, match="only a head answers items of kind regression"):
        plan_work([suite], tiny_backbone)


def test_a_run_of_numbers_from_plan_to_verdict(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is the mean; the scores are those of scikit-learn on the ledger.

    Base and adapter, which are two models, are asked in looks together.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = numbers_recipe(
        tiny_encoder,
        tmp_path,
        ("price", "quality"),
        adapter={"method": "head"},
        training={"epochs": 40.0, "learning_rate": 0.05},
        evaluation={"arms": ["base", "adapter", "retrieval", "probe"]},
    )
    outcome = pipeline.run(recipe, tmp_path / "run")
    task = outcome.verdict.suites[0].tasks[0]
    assert task.base == pytest.approx(1.0, abs=0.01)
    assert task.adapter < 0.5
    assert task.decision == "PASS"
    assert task.looks.planned == 2
    assert [baseline.arm for baseline in task.baselines] == ["retrieval", "probe"]
    measured = {one.name: one for one in task.measures}
    assert {"r2", "rmse", "spearman", "r2 of price", "rmse of quality"} <= set(measured)
    ledger = read_ledger(tmp_path / "run" / "evaluation" / "ledger.parquet")
    entries = [entry for entry in ledger if entry.arm == "adapter"]
    given, true = (
        np.array([list(read_numbers(getattr(e, name)).values()) for e in entries])
        for name in ("output", "reference")
    )
    assert measured["r2"].adapter == pytest.approx(r2_score(true, given), abs=1e-4)
    assert task.adapter == pytest.approx(1 - r2_score(true, given), abs=1e-4)
    assert not measured["rmse"].higher_is_better
    assert measured["rmse"].interval.delta > 0
    check_verdict(tmp_path / "run" / "evaluation")
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text()
    assert "no model: the mean of the 24 training rows, price 125, quality 126" in report
    assert "rmse, lower is better" in report


@pytest.mark.parametrize("score", ["r2", "rmse", "spearman"])
def test_a_score_of_all_items_decides(score: str) -> None:
    task = TaskSpec.model_validate(
        {"name": "t", "kind": "regression", "source": "x.jsonl", "score": score}
    )
    base = Entry("base", "s", "t", "", "", 1.0, "5", "", "", 1, 0.0)
    rows = {str(n): replace(base, item=str(n), cluster=str(n), reference=str(n)) for n in range(9)}
    right = {n: replace(one, arm="adapter", output=n, score=0.0) for n, one in rows.items()}
    pairs = pair(rows, right, task, "t")
    suite = Suite.model_validate({"name": "s", "role": "gain", "tasks": [task]})
    look = LookPlan().looks(suite, task).look(1)
    assert compare(pairs, task, look).decision == "PASS"
    assert task_score(pairs.after, task) == pytest.approx(0.0 if score == "rmse" else 1.0)
