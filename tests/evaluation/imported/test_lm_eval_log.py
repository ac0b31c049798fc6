"""Samples that lm-eval itself wrote, of its model that answers at random."""

import json
import shutil
from pathlib import Path

import pytest

from lora_kit.evaluation.imported.paired import pair_results, suite_of_results
from lora_kit.evaluation.imported.read import read_results
from lora_kit.evaluation.imported.result import FIRST, Columns, TaskResults
from lora_kit.runtime.errors import EvaluationError
from tests.evaluation.imported.logging_lm_eval import CHOICE, log_samples, write_task

pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": f"What is {n} and {n + 1}?", "choices": [str(2 * n), str(2 * n + 1), "many"]}
    | {"answer": 1, "page": n // 4}
    for n in range(24)
]
TAKE_FIRST = {"function": "take_first"}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"]},
    "filter_list": [
        {"name": "letters", "filter": [{"function": "regex", "regex_pattern": "(l)"}, TAKE_FIRST]},
        {"name": "whole", "filter": [TAKE_FIRST]},
    ],
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "ter", "aggregation": "ter", "higher_is_better": False},
    ],
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Folders of a base and an adapter, with lm-eval's own scores."""
    folder = tmp_path_factory.mktemp("logs")
    task = write_task(folder / "quiz.yaml", CHOICE, QUESTIONS)
    return {
        str(folder / name): log_samples(task, folder / name, "dummy", seed)
        for seed, name in enumerate("ab")
    }


def only(path: str | Path, columns: Columns = FIRST) -> TaskResults:
    [results] = read_results(Path(path), columns, "--base").values()
    return results


def mean(results: TaskResults) -> float:
    scores = [one.score for one in results.items.values() if one.score is not None]
    assert len(scores) == len(results.items)
    return sum(scores) / len(scores)


def samples_of(folder: str | Path) -> Path:
    [path] = Path(folder).rglob("samples_*.jsonl")
    return path


def test_scores_are_those_that_lm_eval_reports(logs: dict[str, dict[str, float]]) -> None:
    for folder, scores in logs.items():
        for metric in ("acc", "acc_norm"):
            assert mean(only(folder, Columns(metric))) == pytest.approx(scores[f"{metric},none"])
    assert only(folder).metric == "acc"
    assert only(folder).lower_is_better is False
    assert only(samples_of(folder)) == only(folder)


def test_an_item_has_its_question_its_choices_and_their_likelihoods(
    logs: dict[str, dict[str, float]],
) -> None:
    one = only(next(iter(logs))).items["quiz/7"]
    assert one.prompt == "Question: What is 7 and 8?\nAnswer:"
    assert (one.choices, one.answer, one.reference) == (("14", "15", "many"), 1, "15")
    assert one.output == one.choices[one.log_likelihoods.index(max(one.log_likelihoods))]
    assert one.score == (one.output == "15")
    assert set(one.measures) == {"acc_norm"}


def test_items_of_a_field_are_a_cluster(logs: dict[str, dict[str, float]]) -> None:
    found = only(next(iter(logs)), Columns(cluster="page")).items
    assert [found[f"quiz/{n}"].cluster for n in (0, 3, 4, 23)] == ["0", "0", "1", "5"]
    with pytest.raises(EvaluationError, match=r"jsonl:1: --cluster: no such field \(got pages\)"):
        only(next(iter(logs)), Columns(cluster="pages"))


def test_both_are_judged_by_their_items(logs: dict[str, dict[str, float]]) -> None:
    base, adapter = (read_results(Path(folder), FIRST, "--base") for folder in logs)
    pairs = pair_results(base, adapter)
    [task] = suite_of_results(pairs, 0.1, 0.05, False).tasks
    assert (task.kind, task.metric, task.lower_is_better) == ("lm_eval", "acc", False)
    with pytest.raises(EvaluationError, match="say that a higher acc is better"):
        suite_of_results(pairs, 0.1, 0.05, True)


def test_another_prompt_is_another_item(logs: dict[str, dict[str, float]], tmp_path: Path) -> None:
    base, adapter = logs
    other = tmp_path / samples_of(adapter).name
    lines = samples_of(adapter).read_text().splitlines()
    third = json.loads(lines[2]) | {"prompt_hash": "0" * 64}
    other.write_text("\n".join([*lines[:2], json.dumps(third), *lines[3:]]))
    with pytest.raises(
        EvaluationError, match=r"jsonl:3: prompt: the item is another one .*jsonl:3"
    ):
        pair_results(*(read_results(Path(p), FIRST, "") for p in (base, other)))
    other.write_text("\n".join(lines[:20]))
    with pytest.raises(EvaluationError, match=r"lacks 4 items that the base has \(got quiz/20, "):
        pair_results(*(read_results(Path(p), FIRST, "") for p in (base, other)))
    other.write_text("\n".join([*lines, lines[5]]))
    with pytest.raises(EvaluationError, match=r"jsonl:25: id: .*'quiz/5' a second time"):
        read_results(other, FIRST, "")
    other.write_text("\n".join([*lines[:4], lines[4][:50]]))
    with pytest.raises(EvaluationError, match=r"jsonl:5: not valid JSON"):
        read_results(other, FIRST, "")


def test_a_score_that_is_no_number_is_missing(
    logs: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    other = tmp_path / "quiz.jsonl"
    rows = [json.loads(line) for line in samples_of(next(iter(logs))).open()]
    rows[3]["acc"] = float("nan")
    other.write_text("\n".join(map(json.dumps, rows)))
    assert [one.id for one in only(other).items.values() if one.score is None] == ["quiz/3"]
    bypassed = [{k: v for k, v in r.items() if not k.startswith("acc")} for r in rows]
    other.write_text("\n".join(json.dumps(row | {"bypass": 999}) for row in bypassed))
    with pytest.raises(EvaluationError, match="no metric is a number of each item"):
        only(other)
    rows[3]["acc"] = "right"
    other.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(EvaluationError, match=r"quiz.jsonl:4: acc: not a number \(got 'right'\)"):
        only(other)


def test_the_newest_samples_of_a_task_are_read(
    logs: dict[str, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(next(iter(logs)), folder)
    newest = samples_of(folder)
    older = newest.with_name("samples_quiz_2024-01-02T03-04-05.678.jsonl")
    older.write_text(newest.read_text().splitlines()[0])
    assert len(only(folder).items) == len(QUESTIONS)
    assert f"{older}: not read" in " ".join(capsys.readouterr().err.split())
    shutil.copytree(newest.parent, folder / "another")
    with pytest.raises(EvaluationError, match="two folders have samples of quiz"):
        only(folder)


def test_a_generated_answer_is_judged_after_one_filter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "sums.yaml", WRITTEN, QUESTIONS)
    scores = log_samples(task, tmp_path / "log", "dummy")
    results = only(tmp_path / "log")
    assert results.metric == "exact_match,letters"
    other = read_results(tmp_path / "log", Columns("exact_match,whole"), "")
    with pytest.raises(EvaluationError, match="not the same score"):
        pair_results({"sums": results}, other)
    assert "filter letters is judged, not whole" in " ".join(capsys.readouterr().err.split())
    assert mean(results) == scores["exact_match,letters"]
    one = only(tmp_path / "log", Columns("exact_match,whole")).items["sums/2"]
    assert (one.output, one.choices, one.reference) == ("lol", (), "5")
    for metric, reason in {
        "exact_match,words": "no such filter (got 'words'). Fix: use one of letters, whole",
        "acc": "not a number of each item (got 'acc'). Fix: use exact_match",
        "ter": "not a number of each item (got 'ter'). Fix: use exact_match",
    }.items():
        with pytest.raises(EvaluationError) as error:
            only(tmp_path / "log", Columns(metric))
        assert reason in str(error.value)


def test_choices_that_are_asked_again_without_their_question_count_once(tmp_path: Path) -> None:
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_mutual_info")
    ]
    task = write_task(tmp_path / "quiz.yaml", CHOICE | {"metric_list": metrics}, QUESTIONS)
    scores = log_samples(task, tmp_path / "log", "dummy")
    results = only(tmp_path / "log")
    assert mean(results) == pytest.approx(scores["acc,none"])
    for one in results.items.values():
        assert (len(one.choices), len(one.log_likelihoods)) == (3, 3)
        assert one.prompt.startswith("Question: ")
        assert one.score == (one.output == one.reference)
