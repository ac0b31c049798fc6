import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_kit.evaluation.imported.paired import pair_results, suite_of_results
from lora_kit.evaluation.imported.read import read_results
from lora_kit.evaluation.imported.result import FIRST, Columns
from lora_kit.runtime.errors import DataError, EvaluationError

Write = Callable[[str, Sequence[Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


def test_scores_are_numbers_or_right_and_wrong(write: Write) -> None:
    rows = [{"id": 1, "score": True}, {"id": "b", "score": 0.25}, {"id": "c", "score": None}]
    [results] = read_results(write("a.jsonl", rows), FIRST, "--base").values()
    assert {name: one.score for name, one in results.items.items()} == {
        "1": 1.0,
        "b": 0.25,
        "c": None,
    }
    assert (results.name, results.metric, results.lower_is_better) == ("scores", "score", None)


def test_rows_of_several_tasks_are_several_tasks(write: Write) -> None:
    rows = [{"id": 1, "score": 1, "task": "sums"}, {"id": 1, "score": 0, "task": "words"}]
    assert list(read_results(write("a.jsonl", rows), FIRST, "")) == ["sums", "words"]


def test_tables_of_other_kinds_hold_scores_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,chrf,page\n1,20.5,x\n2,TRUE,x\n3,,x\n")
    [results] = read_results(path, Columns("chrf", "page"), "").values()
    assert [(one.score, one.cluster) for one in results.items.values()] == [
        (20.5, "x"),
        (1, "x"),
        (None, "x"),
    ]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"score": 1}], "a.jsonl:1: id: missing (got score)"),
        ([{"id": 1}], "a.jsonl:1: score: missing (got id)"),
        ([{"id": 1, "scores": 1}], "Did you mean `scores`?"),
        ([{"id": None, "score": 1}], "a.jsonl:1: id: has no value"),
        ([{"id": 1, "score": 1}, {"id": 2, "score": "right"}], "a.jsonl:2: score: not a number"),
        ([{"id": 1, "score": [1]}], "a.jsonl:1: score: not a number (got [1])"),
        ([{"id": 1, "score": 1}, {"id": 1, "score": 0}], "a.jsonl:2: id: an item has one result"),
        ([{"id": 1, "score": 1}, {"id": "1", "score": 0}], "a.jsonl:2: id: an item has one result"),
        ([[1, 2]], "a.jsonl:1: a row must be an object"),
        ([], "no rows"),
    ],
)
def test_a_row_that_is_no_score_is_named(write: Write, rows: list[Any], reason: str) -> None:
    with pytest.raises((EvaluationError, DataError)) as error:
        read_results(write("a.jsonl", rows), FIRST, "--base")
    assert reason in str(error.value)


def test_a_file_of_another_kind_says_what_is_possible(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 0\n")
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(EvaluationError, match=r"lm-eval's samples .* a log of Inspect .* rows"):
            read_results(path, FIRST, "--base")
    with pytest.raises(EvaluationError, match=r"--adapter: no such file"):
        read_results(tmp_path / "b.jsonl", FIRST, "--adapter")


def test_both_files_have_the_same_items(write: Write) -> None:
    base = [{"id": n, "score": 1, "prompt": f"Question {n}?"} for n in range(9)]
    first = read_results(write("a.jsonl", base), FIRST, "")

    def refused(rows: Sequence[Any]) -> str:
        with pytest.raises(EvaluationError) as error:
            pair_results(first, read_results(write("b.jsonl", rows), FIRST, ""))
        return str(error.value)

    assert "b.jsonl: lacks 7 items that the base has (got 2, 3, 4, 5, 6 and 2 more)" in refused(
        base[:2]
    )
    assert "a.jsonl: lacks 1 items that the adapter has (got 9)" in refused(
        [*base, {"id": 9, "score": 1}]
    )
    other = [*base[:4], base[4] | {"prompt": "Another?"}, *base[5:]]
    assert "b.jsonl:5: prompt: the item is another one" in refused(other)
    assert "lacks 1 tasks that the base has (got scores)" in refused(
        [row | {"task": "sums"} for row in base]
    )
    # A file that does not show the prompts cannot differ in them.
    assert pair_results(
        first,
        read_results(write("b.jsonl", [{"id": row["id"], "score": 0} for row in base]), FIRST, ""),
    )


def test_clusters_differ_as_items_do(write: Write) -> None:
    rows = [{"id": n, "score": n % 2, "page": n // 2} for n in range(8)]
    moved = [*rows[:7], rows[7] | {"page": 9}]
    files = [
        read_results(write(f"{name}.jsonl", one), Columns(cluster="page"), "")
        for name, one in {"a": rows, "b": moved}.items()
    ]
    with pytest.raises(EvaluationError, match=r"b.jsonl:8: cluster: .*got '9', and '3' in .*a.js"):
        pair_results(*files)


def test_the_direction_is_as_given(write: Write) -> None:
    rows = [{"id": n, "score": n % 2} for n in range(8)]
    results = read_results(write("a.jsonl", rows), FIRST, "")
    pairs = pair_results(results, results)
    assert suite_of_results(pairs, None, 0.05, True).tasks[0].higher_is_better is False
    suite = suite_of_results(pairs, 0.1, 0.05, False)
    assert (suite.role, suite.tasks[0].margin, suite.tasks[0].higher_is_better) == (
        "retention",
        0.1,
        True,
    )
