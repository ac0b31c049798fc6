"""Judge tasks: answers of two arms compared by a model, calibrated on labelled pairs or not."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.evaluation.harness import Evaluation
from lora_kit.evaluation.verdict_file import check_verdict, read_suites
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import DataError, EvaluationError
from tests.evaluation.changing_adapter import write_changing_adapter
from tests.standins.chat_judge import ChatJudge, served

PROMPTS = [f"Say something about the number {n}." for n in range(24)]
OTHER = {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 3}
Run = Callable[..., Evaluation]


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_changing_adapter(tiny, tmp_path_factory.mktemp("adapter"), strength=30)


@pytest.fixture
def run(adapter: Path, tiny: Path, tmp_path: Path) -> Run:
    """Return a function that evaluates the adapter with a judge."""
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"p{n}", "prompt": one}) + "\n" for n, one in enumerate(PROMPTS))
    )
    backbone = BackboneSpec.model_validate({"model": str(tiny), "dtype": "float32"})

    def evaluated(judge: dict[str, Any], **task: Any) -> Evaluation:
        asked = {"name": "liked", "kind": "judge", "source": str(tmp_path / "prompts.jsonl")}
        asked |= {"max_new_tokens": 6, "judge": judge, **task}
        other = OTHER | {"max_length": 24}
        suite = {"name": "likes", "role": "gain", "tasks": [other, asked]}
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
        return evaluate(adapter, [str(tmp_path / "suite.yaml")], backbone, tmp_path / "out")

    return evaluated


def label(path: Path, tmp_path: Path, prefers: Callable[[str, str], str]) -> Path:
    """Label the pairs that an evaluation wrote."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["preferred"] = prefers(row["first"], row["second"])
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return labelled


def smaller(_: str, first: str, second: str) -> str:
    return "I weigh both.\nA" if first < second else "B is better.\n**B**"


def by_chance(first: str, second: str) -> str:
    return ("first", "second")[hashlib.sha256((first + second).encode()).digest()[0] % 2]


def outputs(done: Evaluation) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for entry in done.read_entries():
        if entry.task == "liked" and entry.arm != "drift":
            found.setdefault(entry.item, {})[entry.arm] = entry.output
    return found


def test_a_judge_without_calibration_stands_beside_the_verdict(run: Run) -> None:
    judge = ChatJudge(smaller)
    with served(judge) as url:
        asked = {"url": url, "served_model": "judge"}
        done = run(asked, in_verdict=False)
        count = len(judge.asked)
        again = run(asked, in_verdict=False)
    [suite] = done.verdict.suites
    assert [task.task for task in suite.tasks] == ["prose"]
    [beside] = suite.beside
    answers = outputs(done)
    better = {
        item: 0.5 if one["adapter"] == one["base"] else float(one["adapter"] < one["base"])
        for item, one in answers.items()
    }
    scores = {
        e.item: e.score for e in done.read_entries() if (e.task, e.arm) == ("liked", "adapter")
    }
    assert scores == better
    differing = [one for one in answers.values() if one["adapter"] != one["base"]]
    assert len(differing) > 10
    # Both orders of each different pair once, and nothing twice.
    assert count == len(set(judge.asked)) == len(judge.asked)
    assert count == 2 * len({(o["base"], o["adapter"], n) for n, o in enumerate(differing)})
    assert beside.adapter - beside.base == pytest.approx(beside.interval.delta)
    assert beside.judged is not None
    assert beside.judged.agrees == 1.0
    assert "not calibrated" in beside.judged.sentence
    assert check_verdict(done.directory).verdict == done.verdict == again.verdict
    page = (done.directory / "report.html").read_text()
    assert "Beside the verdict" in page
    assert "not calibrated" in (done.directory / "report.md").read_text()


def test_what_a_place_is_preferred_for_is_a_tie(run: Run) -> None:
    with served(ChatJudge(lambda *_: "A")) as url:
        done = run({"url": url, "served_model": "judge"}, in_verdict=False)
    [beside] = done.verdict.suites[0].beside
    assert beside.interval.delta == 0
    assert beside.judged is not None
    assert beside.judged.agrees < 0.5


def test_replies_that_say_nothing_are_counted(run: Run) -> None:
    with served(ChatJudge(lambda *_: "Both have their merits, A as well as B.")) as url:
        done = run({"url": url, "served_model": "judge"}, in_verdict=False)
    [beside] = done.verdict.suites[0].beside
    assert beside.judged is not None
    assert beside.judged.unread > 0.5
    assert "say nothing and count as ties" in beside.judged.sentence


def test_a_calibrated_judge_is_part_of_the_verdict(run: Run, tmp_path: Path) -> None:
    with served(ChatJudge(smaller)) as url:
        judge = {"url": url, "served_model": "judge"}
        first = run(judge, in_verdict=False)
        written = first.directory / "pairs_to_label-likes-liked.jsonl"
        answers = outputs(first)
        rows = [json.loads(line) for line in written.read_text().splitlines()]
        firsts = {row["first"] == answers[row["item"]]["adapter"] for row in rows}
        assert firsts == {True, False}
        more = [{"prompt": f"Q{n}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(20)]
        pairs = tmp_path / "preferences.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in more))
        done = run({**judge, "calibration": str(pairs)})
    [_, task] = done.verdict.suites[0].tasks
    assert not done.verdict.suites[0].beside
    assert task.judged is not None
    accuracy = task.judged.accuracy
    assert accuracy is not None
    assert (accuracy.sensitivity, accuracy.sensitive_pairs, accuracy.symmetric) == (1.0, 20, True)
    # Of 20 right labels, the judge may still err.
    assert abs(task.interval.delta) >= abs(task.judged.preferred - 0.5)
    assert task.adapter - 0.5 == pytest.approx(task.interval.delta)
    assert task.interval.high - task.interval.low < 1
    [_, spec] = read_suites(done.directory)[0].tasks
    assert spec.judge is not None
    assert spec.judge.accuracy == accuracy
    assert check_verdict(done.directory).verdict == done.verdict


def test_labels_of_both_arms_give_sensitivity_and_specificity(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_kit.evaluation.llm_judge.labelled_pairs.LEAST_PAIRS", 3)
    with served(ChatJudge(smaller)) as url:
        judge = {"url": url, "served_model": "judge"}
        first = run(judge, in_verdict=False)
        answers = outputs(first)
        written = first.directory / "pairs_to_label-likes-liked.jsonl"
        labelled = label(written, tmp_path, by_chance)
        done = run({**judge, "calibration": str(labelled)})
    task = done.verdict.suites[0].tasks[1]
    assert task.judged is not None
    accuracy = task.judged.accuracy
    assert accuracy is not None
    assert not accuracy.symmetric
    better, worse = [], []
    for row in map(json.loads, labelled.read_text().splitlines()):
        base, own = answers[row["item"]]["base"], answers[row["item"]]["adapter"]
        prefers_own = (row["preferred"] == "first") == (row["first"] == own)
        judged = float(own < base)
        (better if prefers_own else worse).append(judged if prefers_own else 1 - judged)
    assert (accuracy.sensitive_pairs, accuracy.specific_pairs) == (len(better), len(worse))
    assert accuracy.sensitivity == pytest.approx(sum(better) / len(better))
    assert accuracy.specificity == pytest.approx(sum(worse) / len(worse))


def test_a_reply_without_text_is_unread(run: Run) -> None:
    judge = ChatJudge(lambda *_: None)  # type: ignore[arg-type,return-value]
    with served(judge) as url:
        done = run({"url": url, "served_model": "judge"}, in_verdict=False)
    [beside] = done.verdict.suites[0].beside
    assert beside.judged is not None
    assert beside.judged.unread > 0.5
    assert beside.judged.agrees < 0.5


def test_labels_that_were_given_are_not_overwritten(run: Run) -> None:
    with served(ChatJudge(smaller)) as url:
        judge = {"url": url, "served_model": "judge"}
        path = run(judge, in_verdict=False).directory / "pairs_to_label-likes-liked.jsonl"
        content = path.read_text().replace('"preferred": ""', '"preferred": "tie"')
        path.write_text(content)
        run({**judge, "question": "Which one is shorter?"}, in_verdict=False)
    assert path.read_text() == content


def test_a_key_is_sent_and_not_stored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "a-secret")
    judge = ChatJudge(smaller)
    with served(judge) as url:
        asked = {"url": url, "served_model": "judge", "api_key_env": "JUDGE_KEY"}
        done = run(asked, in_verdict=False)
    assert judge.keys == {"Bearer a-secret"}
    for path in done.directory.rglob("*"):
        assert not path.is_file() or b"a-secret" not in path.read_bytes()


def test_a_local_judge_compares_by_the_likelihood_of_letters(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run({"model": str(tiny)}, in_verdict=False)
    [beside] = done.verdict.suites[0].beside
    assert beside.judged is not None
    assert beside.judged.judge == str(tiny)
    rows = [
        json.loads(line)
        for line in (done.directory / "judgements-0.jsonl").read_text().splitlines()
    ]
    assert all(math.isfinite(row["lean"]) for row in rows)
    assert len({row["lean"] for row in rows}) > len(rows) / 2

    def load(*_: Any) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr("lora_kit.evaluation.llm_judge.judges.load", load)
    assert run({"model": str(tiny)}, in_verdict=False).verdict == done.verdict


def test_a_judge_that_stops_is_gone_on_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_kit.evaluation.engines.served.SLOTS", 1)
    monkeypatch.setattr("lora_kit.evaluation.engines.served.TRIES", 1)
    judge = ChatJudge(smaller)
    with served(judge) as url:
        asked = {"url": url, "served_model": "judge"}

        def stops(*texts: str) -> str:
            if len(judge.asked) > 9:
                raise RuntimeError
            return smaller(*texts)

        judge.rule = stops
        with pytest.raises(EvaluationError, match="does not answer"):
            run(asked, in_verdict=False)
        judge.rule = smaller
        judge.asked.clear()
        done = run(asked, in_verdict=False)
    answers = [one for one in outputs(done).values() if one["adapter"] != one["base"]]
    assert 0 < len(judge.asked) < 2 * len(answers)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "first": "a", "second": 1}, r"are texts \(got str, str, int\)"),
        ({"prompt": "p", "first": "a", "second": "b", "preferred": "A"}, "unknown label"),
        ({"prompt": "p", "first": "a", "second": "b"}, r"needs 10 pairs .*\(got 0 in 1 rows"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, r"needs 10 pairs .*\(got 1 in 1 rows"),
        ({"prompt": "p", "chosen": "a"}, r"format preference: no column 'rejected'"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_before_anything_is_answered(
    row: dict[str, Any], reason: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "labels.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=reason):
        run(
            {"url": "http://127.0.0.1:9", "served_model": "judge"}
            | {"calibration": str(tmp_path / "labels.jsonl")}
        )
    assert not (tmp_path / "out").exists()
