"""Evaluation of a classifier's head on classification tasks."""

from pathlib import Path
from typing import Any

import pytest
from scipy.special import softmax

from lora_kit import pipeline
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone, load
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.requests import ClassRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.preflight.make_plan import make_plan
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import DataError, EvaluationError, MergeError, ReleaseError
from tests.classifying import classes_recipe, write_rows, write_suite

BIRD_OR_FRUIT = HeadOutputs("classification", ("bird", "fruit"))


@pytest.fixture
def head(tiny_encoder: Path) -> Backbone:
    spec = BackboneSpec(model=str(tiny_encoder), quantization="none", dtype="float32")
    return load(resolve(spec), spec, HeadOutputs("classification", ("bird", "fruit", "metal")))


def asked(head: Backbone, folder: Path, **own: Any) -> Any:
    source = write_rows(folder / "rows.jsonl", {"fruit": 2, "metal": 2})
    suite = Suite.load(write_suite(folder / "suite.yaml", source, **own))
    return plan_work([suite], head)[0]


def test_an_item_is_the_text_and_all_classes_of_the_head(head: Backbone, tmp_path: Path) -> None:
    item = asked(head, tmp_path, template="Which? {text}").task.items[2]
    assert item.prompt == "number 0 of irons"
    assert isinstance(item.request, ClassRequest)
    shown = head.tokenizer.decode(list(item.request.input_ids))
    assert shown == "[CLS] number 0 of irons [SEP]"
    assert (item.choices, item.answer) == (("bird", "fruit", "metal"), 2)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"kind": "generation", "metric": "chrf"},
            r"a classifier supports only tasks of kind classification \(got kind generation\)",
        ),
        ({"score": "accuracy_per_byte"}, "a head's classes have no length"),
        ({"shots": 1}, r"a classifier takes no examples \(got shots 1\)"),
    ],
)
def test_what_a_head_cannot_be_asked_is_refused(
    head: Backbone, tmp_path: Path, own: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        asked(head, tmp_path, **own)


@pytest.mark.covers("head", on=("none",), launcher="one process, CPU")
def test_suites_of_retention_and_unknown_classes_are_refused(
    head: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(
        EvaluationError, match=r"core-retention/.*the base of a classifier has.*role retention"
    ):
        plan_work([Suite.load("core-retention")], head)
    few = head.head
    assert few is not None
    narrow = type(head)(**{**vars(head), "head": type(few)(BIRD_OR_FRUIT, few.module, ())})
    with pytest.raises(DataError, match=r"not trained on the class .*\(got 'metal'\)"):
        asked(narrow, tmp_path)


def test_a_run_of_classes_from_plan_to_verdict(tiny_encoder: Path, tmp_path: Path) -> None:
    """The base is the most frequent class; merge, release and other arms are refused."""
    recipe = classes_recipe(
        tiny_encoder,
        tmp_path,
        adapter={"method": "head"},
        training={"epochs": 25.0, "learning_rate": 0.05},
        evaluation={"arms": ["base", "adapter", "retrieval"]},
    )
    plan = make_plan(recipe)
    found = plan.on_backbone
    assert found is not None
    assert (found.forecast, found.timing) == (None, None)
    assert [span.text.strip() for span in found.samples[0]][1] == "fruit"
    outcome = pipeline.run(recipe, tmp_path / "run")
    assert outcome.release is None
    assert f"ship {tmp_path / 'run' / 'adapter'}" in outcome.refusal
    task = outcome.verdict.suites[0].tasks[0]
    # Five of twelve are fruits, which half of the training rows are.
    assert task.base == pytest.approx(5 / 12)
    assert task.adapter > 0.9
    assert task.classes is not None
    assert [one.label for one in task.classes.adapter.classes] == ["bird", "fruit", "metal"]
    assert task.classes.base.classes[0].precision is None
    # Constant probabilities order nothing: precision is the share of the class.
    assert task.classes.base.classes[0].average_precision == pytest.approx(3 / 12)
    assert task.classes.confusion is not None
    assert [sum(row) for row in task.classes.confusion.counts] == [3, 5, 4]
    [ranked] = [one for one in task.measures if one.name == "mean_average_precision"]
    assert ranked.adapter == pytest.approx(task.classes.adapter.macro_average_precision)
    page = (tmp_path / "run" / "evaluation" / "report.html").read_text()
    assert "Confusion matrix of the adapter" in page
    assert [baseline.arm for baseline in task.baselines] == ["retrieval"]
    check_verdict(tmp_path / "run" / "evaluation")
    again = pipeline.evaluate(tmp_path / "run" / "adapter", recipe.evaluation.suites)
    entries = [entry for entry in again.read_entries() if entry.arm == "base"]
    assert len(entries) == 12
    assert softmax(entries[0].log_likelihoods) == pytest.approx([0.25, 0.5, 0.25])
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text()
    assert "no model: the most frequent class of the training rows, fruit (50%)" in report
    with pytest.raises(MergeError, match="head of a classifier or a reward model cannot be merged"):
        pipeline.merge(tmp_path / "run")
    with pytest.raises(
        ReleaseError, match="a head cannot be merged, so there is no model to release"
    ):
        pipeline.release(tmp_path / "run")
    with pytest.raises(EvaluationError, match=r"arms: not supported with a head \(got fewshot\)"):
        pipeline.evaluate(tmp_path / "run", arms=["fewshot"])


def test_built_in_areas_are_rows_of_one_area_each_and_no_module_is_in_two_splits() -> None:
    from lora_kit.data.builtin.areas import AREAS, area_rows
    from lora_kit.data.rows import assign_split

    rows = area_rows()
    assert {row.label for row in rows} == set(AREAS)
    texts = [row.messages[0].content for row in rows]
    assert len(set(texts)) == len(texts)
    test = {row.cluster for row in rows if assign_split(row.cluster, 0.1, 0.3) == "test"}
    assert {row.label for row in rows if row.cluster in test} == set(AREAS)
    suite = Suite.load("areas")
    assert suite.tasks[0].source == "stdlib-areas"


def test_class_indices_of_a_saved_table_are_read_as_class_names(
    head: Backbone, tmp_path: Path
) -> None:
    import datasets

    names = datasets.ClassLabel(names=["metal", "fruit"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = [{"text": "iron", "label": 0}, {"text": "plum", "label": 1}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    suite = Suite.load(write_suite(tmp_path / "suite.yaml", tmp_path / "saved"))
    items = plan_work([suite], head)[0].task.items
    assert [item.choices[item.answer] for item in items] == ["metal", "fruit"]
