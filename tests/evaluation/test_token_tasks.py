"""Evaluation of a token classifier: grades, the arms, and the verdict against seqeval."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from lora_kit import pipeline
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import load
from lora_kit.data.entities import read_entities, tags_of
from lora_kit.evaluation.arms.words import FrequentTags
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.item import Item, Outcome
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.requests import TagRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.tag_grading import grade_tags
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import DataError
from tests.entities import entities_recipe, write_rows, write_suite

NAMES = ("O", "B-a", "I-a")
# The last word has no token.
ITEM = Item(
    id="1",
    cluster="1",
    prompt="p q r s",
    reference="",
    request=TagRequest((5, 6, 7, 8), ("p", "q", "r", "s"), (0, 1, 3, None)),
    choices=NAMES,
    tags=("B-a", "I-a", "O", "B-a"),
)


def outcome(*tags: int) -> Outcome:
    """Return log-likelihoods of which those of the given tags are the largest."""
    rows = [[-0.2 if tag == own else -2.0 for tag in range(3)] for own in tags]
    return Outcome(tuple(value for row in rows for value in row))


def test_a_grade_is_of_the_entities_and_a_word_without_a_token_is_o() -> None:
    graded = grade_tags(ITEM, outcome(1, 2, 0), score="jaccard")
    assert (graded.score, graded.output) == (0.5, '[["a", 0, 2, "p q"]]')
    assert graded.measures["accuracy"] == 0.75
    assert graded.measures["loss"] == pytest.approx(0.2)
    # An I that continues nothing is no entity, and other boundaries are wrong.
    wrong = grade_tags(ITEM, outcome(1, 0, 2), score="exact_match")
    assert (wrong.score, wrong.output) == (0.0, '[["a", 0, 1, "p"]]')
    assert wrong.measures["jaccard"] == 0.0
    assert wrong.measures["loss"] == pytest.approx((0.2 + 2.0 + 2.0) / 3)
    assert grade_tags(ITEM, Outcome((math.nan,) * 9), score="jaccard").score is None


def test_the_base_gives_each_word_its_most_frequent_tag_and_o_to_others() -> None:
    model = FrequentTags((1.0, 0.0, 0.0), {"q": (0.0, 0.5, 0.2)}, None)
    found = model(torch.zeros(2, 4, dtype=torch.int64), [[("q", 1), ("z", 3)], [("q", 0)]])
    assert found.logits.shape == (2, 4, 3)
    assert found.logits[0, 1].tolist() == found.logits[1, 0].tolist() == [0.0, 0.5, 0.2]
    assert found.logits[0, 3].tolist() == [1.0, 0.0, 0.0]


def test_items_that_do_not_fit_the_head_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    spec = BackboneSpec(model=str(tiny_encoder), quantization="none", dtype="float32")
    head = load(resolve(spec), spec, HeadOutputs("token-classification", NAMES))
    for texts, message in (
        ([[("p", "B-b")]], r"row 0: .*not trained on a tag.*\(got 'B-b'\)"),
        ([[("p", "O")]], r"source: no item has an entity"),
    ):
        source = write_rows(tmp_path / "rows.jsonl", 1, texts)
        suite = Suite.load(write_suite(tmp_path / "suite.yaml", source))
        with pytest.raises(DataError, match=message):
            plan_work([suite], head)


def test_retrieval_is_refused_with_the_reason(tiny_encoder: Path, tmp_path: Path) -> None:
    arms = {"arms": ["base", "adapter", "retrieval"]}
    with pytest.raises(ValidationError, match="the tags of another text do not fit"):
        entities_recipe(tiny_encoder, tmp_path, evaluation=arms)


def test_a_run_of_tags_from_plan_to_verdict(
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = entities_recipe(
        tiny_encoder,
        tmp_path,
        adapter={"method": "head"},
        training={"epochs": 20.0, "learning_rate": 0.05},
        evaluation={"arms": ["base", "adapter", "probe"]},
    )
    outcome = pipeline.run(recipe, tmp_path / "run")
    task = outcome.verdict.suites[0].tasks[0]
    assert [baseline.arm for baseline in task.baselines] == ["probe"]
    assert task.unit == "entity F1"
    entries = read_ledger(tmp_path / "run" / "evaluation" / "ledger.parquet")
    scores = {}
    for arm in ("base", "adapter", "probe"):
        own = [entry for entry in entries if entry.arm == arm]
        true, given = (
            [list(tags_of(read_entities(text), len(entry.prompt.split()))) for entry, text in pairs]
            for pairs in (
                [(entry, entry.reference) for entry in own],
                [(entry, entry.output) for entry in own],
            )
        )
        scores[arm] = f1_score(true, given, mode="strict", scheme=IOB2)
    assert task.base == pytest.approx(scores["base"])
    assert task.adapter == pytest.approx(scores["adapter"])
    assert task.baselines[0].mean == pytest.approx(scores["probe"])
    # "York" is a place by itself, or the end of one, so that no word alone tells.
    assert 0.5 < scores["base"] < 1
    assert scores["adapter"] > 0.6
    measured = {one.name for one in task.measures}
    assert {"relaxed_entity_f1", "accuracy", "exact_match", "jaccard", "loss"} <= measured
    assert task.classes is not None
    assert [one.label for one in task.classes.adapter.classes] == ["person", "place"]
    check_verdict(tmp_path / "run" / "evaluation")
    page = (tmp_path / "run" / "evaluation" / "report.html").read_text()
    is_wrong = any(e.output != e.reference for e in entries if e.arm == "adapter")
    assert ("wrong: <bdi>p" in page) == is_wrong
