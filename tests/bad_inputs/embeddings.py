"""Rows, sections and tasks of embeddings."""

import json
from typing import Any

from tests.bad_inputs.case import REFUSED, Case, Place, jsonl, plan_of

PAIRS = [{"anchor": f"number {n}", "positive": f"the square {n * n}"} for n in range(3)]
TRAINING = {"batch_size": 2, "objective": "embedding"}


def _rows(name: str, rows: list[dict[str, Any]], *says: str, **own: Any) -> Case:
    """Return the case of rows of an embedding, whose section `training` is changed."""

    def write(place: Place) -> list[str]:
        training = TRAINING | own.get("training", {})
        return plan_of(place, jsonl(place, *rows), **{**own, "training": training})

    return Case(name, write, says, REFUSED)


def _second(name: str, row: dict[str, Any], *says: str) -> Case:
    """Return the case of a second row that is refused by its place."""
    return _rows(name, [PAIRS[0], row], "rows.jsonl:2", *says)


def _task(name: str, rows: list[dict[str, Any]], task: dict[str, Any], *says: str) -> Case:
    """Return the case of a task on the rows of a file."""

    def write(place: Place) -> list[str]:
        source = jsonl(place, *rows, name="task.jsonl")
        tasks = [{"name": "found", "source": str(source), **task}]
        suite = place.folder / "own.yaml"
        suite.write_text(json.dumps({"name": "own", "role": "gain", "tasks": tasks}))
        return plan_of(
            place, jsonl(place, *PAIRS), training=TRAINING, evaluation={"suites": [str(suite)]}
        )

    return Case(name, write, says, REFUSED)


CASES = (
    _second("an empty anchor", {"anchor": " ", "positive": "b"}, "`anchor` must be a non-empty"),
    _second("a positive of null", {"anchor": "a", "positive": None}, "`positive` must be"),
    _second("an anchor that is a list", {"anchor": ["a"], "positive": "b"}, "`anchor` must be"),
    _second(
        "an anchor that is its positive",
        {"anchor": "a  b", "positive": "a b"},
        *("positive: the same text as the anchor", "Fix: "),
    ),
    _second(
        "a negative that is the positive",
        {"anchor": "a", "positive": "b", "negative": "b"},
        *("negative: the same text as the positive", "Fix: "),
    ),
    _second(
        "a negative that is empty",
        {"anchor": "a", "positive": "b", "negative": ""},
        "`negative` must be a non-empty",
    ),
    _second(
        "an anchor without a positive",
        {"anchor": "a", "positives": "b"},
        "no known format",
        "anchor, positives",
    ),
    _second("a cluster of a pair that is empty", {**PAIRS[1], "cluster": ""}, "`cluster` must"),
    _rows(
        "texts in place of pairs",
        [{"text": "a"}],
        *("rows.jsonl:1", "embedding needs pairs of texts, or triplets", "format text"),
    ),
    _rows(
        "pairs for another objective",
        PAIRS,
        *("rows.jsonl:1", "no known format"),
        training={"objective": "sft"},
    ),
    _rows("a step of one pair", PAIRS, "training.batch_size", training={"batch_size": 1}),
    _rows("a temperature of zero", PAIRS, "embedding.temperature", embedding={"temperature": 0}),
    _rows("a pooling by the maximum", PAIRS, "embedding.pooling", embedding={"pooling": "max"}),
    _rows(
        "the first token of a decoder",
        PAIRS,
        *("embedding.pooling: the first token of a decoder", "Fix: use last or mean"),
        embedding={"pooling": "cls"},
    ),
    _rows(
        "a section of embeddings for another objective",
        [{"text": "a", "label": "b"}],
        "embedding: is read by the objective embedding only",
        training={"objective": "classification"},
        embedding={},
    ),
    _rows(
        "an embedding without an adapter",
        PAIRS,
        *("adapter.method", "has no head to train"),
        adapter={"method": "head"},
    ),
    _rows(
        "an embedding with virtual tokens",
        PAIRS,
        *("adapter.method", "virtual tokens are not"),
        adapter={"method": "prompt_tuning"},
    ),
    _rows(
        "an embedding that is merged",
        PAIRS,
        *("merge", "vectors of texts are computed with the adapter"),
        merge={"shard_size": 1},
    ),
    _rows(
        "an embedding with a probe",
        PAIRS,
        *("evaluation.arms", "got probe"),
        evaluation={"suites": ["docstring-code"], "arms": ["base", "adapter", "probe"]},
    ),
    _rows(
        "validations of an embedding",
        PAIRS,
        "training.eval_steps: the validation loss is that of sft",
        training={"eval_steps": 1},
    ),
    _rows(
        "an embedding on a task of sums",
        PAIRS,
        "an embedding supports only tasks of kind retrieval or similarity",
    ),
    _task(
        "a task with one document",
        [PAIRS[0]],
        {"kind": "retrieval"},
        "a retrieval needs several documents (got 1",
    ),
    _task("a task of texts", [{"text": "a"}], {"kind": "retrieval"}, "task.jsonl:1", "needs pairs"),
    _task(
        "a score of another kind",
        PAIRS,
        {"kind": "retrieval", "score": "spearman"},
        "has no `score: spearman`",
    ),
    _task(
        "a similarity without a score",
        [{"sentence1": "a", "sentence2": "b"}],
        {"kind": "similarity"},
        *("task.jsonl:1", "no column 'score'"),
    ),
    _task(
        "a similarity that is a word",
        [{"sentence1": "a", "sentence2": "b", "score": "high"}],
        {"kind": "similarity"},
        *("task.jsonl:1", "score: not a number"),
    ),
    _task(
        "similarities that are all the same",
        [{"sentence1": "a", "sentence2": text, "score": 1} for text in ("b", "c")],
        {"kind": "similarity"},
        "all pairs have the same score",
    ),
)
