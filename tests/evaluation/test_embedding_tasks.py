"""Retrieval and similarity: ranks, scores and a run from plan to verdict."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from lora_kit import pipeline
from lora_kit.backbone.files import resolve
from lora_kit.backbone.heads import embedding_outputs
from lora_kit.backbone.load import load
from lora_kit.evaluation.embedding_grading import grade_ranks, grade_similarity
from lora_kit.evaluation.engine.embeddings import ranked_outcome
from lora_kit.evaluation.engine.lexical import lexical_outcomes
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.item import Item, Outcome
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.requests import QueryRequest, SimilarityRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.target_rows import read_targets
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.recipe.backbone import BackboneSpec
from tests.embedding import embedding_recipe, pairs, write_suite
from tests.head_recipes import write_lines

QUERY = Item("1", "1", "", "", QueryRequest((5,)))
TEXTS = tuple("abcdefghijklmno")


def test_scores_of_ranks_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 12):
        scores, right = random.normal(size=15), random.choice(15, count, replace=False)
        relevant = np.isin(np.arange(15), right).astype(float)
        outcome = ranked_outcome(torch.tensor(scores), right.tolist(), TEXTS)
        graded = grade_ranks(QUERY, outcome, score="ndcg")
        assert graded.score == pytest.approx(ndcg_score([relevant], [scores], k=10))
        order = np.argsort(-scores)
        assert graded.output == TEXTS[order[0]]
        assert graded.measures["recall_at_1"] == relevant[order[0]] / count
        assert graded.measures["recall_at_10"] == relevant[order[:10]].sum() / count
        assert graded.measures["reciprocal_rank"] == 1 / (1 + np.argmax(relevant[order]))


def test_equal_scores_gain_nothing_and_no_number_has_no_score() -> None:
    outcome = ranked_outcome(torch.ones(4), [1, 2], TEXTS)
    assert (outcome.log_likelihoods, outcome.text) == ((3.0, 4.0), "a")
    broken = ranked_outcome(torch.tensor([0.5, float("nan")]), [0], TEXTS)
    assert grade_ranks(QUERY, broken, score="ndcg").score is None


def test_the_error_of_a_similarity_is_in_the_range_of_the_task() -> None:
    item = Item("1", "1", "", "", SimilarityRequest(((5,), (6,)), "mean"), targets={"score": 4.0})
    graded = grade_similarity(item, Outcome((0.5,)), low=0.0, high=5.0)
    assert (graded.score, graded.output) == (pytest.approx(0.09), "0.5")


def test_rows_of_one_query_are_one_item_and_negatives_are_documents(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    rows = [
        {"anchor": "Why?", "positive": "So."},
        {"anchor": "Why?", "positive": "Because.", "negative": "No."},
        {"anchor": "Who?", "positive": "So.", "negative": None},
    ]
    suite = Suite.load(
        write_suite(tmp_path / "suite.yaml", write_lines(tmp_path / "rows.jsonl", rows))
    )
    spec = BackboneSpec(model=str(tiny_encoder), quantization="none", dtype="float32")
    [work] = plan_work([suite], load(resolve(spec), spec, embedding_outputs("auto")))
    assert work.task.corpus is not None
    assert work.task.corpus.texts == ("So.", "Because.", "No.")
    requests = [item.request for item in work.task.items if isinstance(item.request, QueryRequest)]
    assert [one.right for one in requests] == [(0, 1), (0,)]
    assert {one.pooling for one in requests} == {"mean"}
    # Words that no document has leave all of them equal.
    assert [one.log_likelihoods for one in lexical_outcomes(work.task)] == [(2.0, 3.0), (3.0,)]


def test_the_built_in_pairs_are_functions_of_modules_in_one_split() -> None:
    rows = {
        split: read_targets(
            TaskSpec(name="a", kind="retrieval", source="stdlib-docstring-code", split=split)
        )
        for split in ("train", "validation", "test")
    }
    clusters = [{row.cluster for row in of_split} for of_split in rows.values()]
    assert not clusters[0] & clusters[1]
    assert not clusters[0] & clusters[2]
    assert len(rows["test"]) > 300
    texts = [row.row.messages[1].content for of_split in rows.values() for row in of_split]
    assert len(set(texts)) == len(texts)
    for row in rows["test"]:
        assert row.row.messages[0].content not in row.row.messages[1].content


def test_a_run_of_an_embedding_from_plan_to_verdict(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are those of the ledger; a retention suite compares similarities."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    similar = [
        {"sentence1": f"apple {n}", "sentence2": f"pear {n * n}", "score": n % 5} for n in range(40)
    ]
    kept = write_suite(
        tmp_path / "kept.yaml",
        write_lines(tmp_path / "similar.jsonl", similar),
        kind="similarity",
        margin=0.5,
    )
    kept.write_text(kept.read_text().replace("gain", "retention").replace("finding", "kept"))
    recipe = embedding_recipe(
        tiny_encoder,
        tmp_path,
        training={"epochs": 3.0},
        evaluation={"arms": ["base", "adapter", "retrieval"]},
    )
    suites = [*recipe.evaluation.suites, str(kept)]
    evaluation = recipe.evaluation.model_copy(update={"suites": suites})
    recipe = recipe.model_copy(update={"evaluation": evaluation})
    outcome = pipeline.run(recipe, tmp_path / "run")
    found, retained = (suite.tasks[0] for suite in outcome.verdict.suites)
    entries = read_ledger(tmp_path / "run" / "evaluation" / "ledger.parquet")
    for arm, score in (("base", found.base), ("adapter", found.adapter)):
        own = [e.score for e in entries if (e.arm, e.suite) == (arm, "finding")]
        assert len(own) == len(pairs(24))
        assert score == pytest.approx(np.mean(own))
    assert {one.name for one in found.measures} == {
        *("recall_at_1", "recall_at_10", "reciprocal_rank")
    }
    assert [one.arm for one in found.baselines] == ["retrieval"]
    own = [e for e in entries if (e.arm, e.suite) == ("adapter", "kept")]
    numbers = [[float(e.output), float(e.reference)] for e in own]
    assert retained.adapter == pytest.approx(spearmanr(numbers).statistic, abs=1e-9)
    assert retained.unit == "Spearman's ρ"
