import json
import math
from pathlib import Path

import pytest

from lora_kit.errors import EvaluationError, RecipeError
from lora_kit.evaluation.harness import LEDGER, SUITES, VERDICT, check_verdict
from lora_kit.evaluation.ledger import Entry, read_ledger, write_ledger
from lora_kit.evaluation.suite import Suite, suite_names
from lora_kit.evaluation.verdict import judge
from lora_kit.files import write_json

RETENTION = Suite.model_validate(
    {
        "name": "keep",
        "role": "retention",
        "tasks": [
            {"name": "quiz", "kind": "multiple_choice", "source": "x", "margin": 0.05},
            {"name": "prose", "kind": "loss", "source": "x", "margin": 0.1},
        ],
    }
)


def entries(task: str, arm: str, scores: list[float | None]) -> list[Entry]:
    return [
        Entry(arm, "keep", task, f"i{n}", f"c{n}", score, "out", "in", "ref", 3, 0.1)
        for n, score in enumerate(scores)
    ]


def ledger(quiz: list[float | None], prose: list[float | None]) -> list[Entry]:
    return [
        *entries("quiz", "base", [1.0] * len(quiz)),
        *entries("quiz", "adapter", quiz),
        *entries("prose", "base", [3.0] * len(prose)),
        *entries("prose", "adapter", prose),
    ]


def test_differences_are_oriented_so_that_positive_is_better() -> None:
    quiz, prose = (
        judge(ledger([1.0] * 300 + [0.0] * 3, [2.9, 2.8] * 50), [RETENTION]).suites[0].tasks
    )
    assert quiz.interval.delta < 0
    assert (quiz.won, quiz.lost) == (0, 3)
    assert prose.interval.delta == pytest.approx(0.15)
    assert not prose.higher_is_better
    assert (prose.won, prose.lost) == (100, 0)


def test_one_lost_task_fails_the_suite_and_the_whole() -> None:
    verdict = judge(ledger([0.0] * 150 + [1.0] * 150, [2.9, 2.8] * 50), [RETENTION])
    assert [task.decision for task in verdict.suites[0].tasks] == ["FAIL", "PASS"]
    assert verdict.decision == verdict.suites[0].decision == "FAIL"


def test_an_undecided_task_says_how_many_items_it_would_take() -> None:
    task = judge(ledger([1.0] * 38 + [0.0] * 2, [2.9, 2.8] * 9), [RETENTION]).suites[0].tasks[0]
    assert task.decision == "INCONCLUSIVE"
    assert task.items_needed is None  # 5 points lost of 5 allowed: on the line itself
    closer = judge(ledger([1.0] * 39 + [0.0], [2.9, 2.8] * 9), [RETENTION]).suites[0].tasks[0]
    assert closer.decision == "INCONCLUSIVE"
    assert closer.items_needed is not None
    assert closer.items_needed > 40


@pytest.mark.parametrize("broken", [None, math.nan, math.inf])
def test_an_adapter_that_breaks_down_on_an_item_does_not_pass(broken: float | None) -> None:
    scores: list[float | None] = [2.9, 2.8] * 50
    task = judge(ledger([1.0] * 300, [*scores, broken]), [RETENTION]).suites[0].tasks[1]
    assert task.missing == 1
    assert task.interval.items == 100
    assert task.decision == "INCONCLUSIVE"


def test_arms_on_different_items_are_not_compared() -> None:
    rows = ledger([1.0] * 10, [2.9] * 10)[:-1]
    with pytest.raises(EvaluationError, match=r"keep/prose.*same items \(10 and 9\)"):
        judge(rows, [RETENTION])


def test_no_score_at_all_is_an_error_not_a_zero() -> None:
    with pytest.raises(EvaluationError, match="no item has a score"):
        judge(ledger([1.0] * 10, [None] * 10), [RETENTION])


def test_the_verdict_has_to_follow_from_the_ledger(tmp_path: Path) -> None:
    rows = ledger([1.0] * 300, [2.9, 2.8] * 50)
    write_ledger(tmp_path / LEDGER, rows)
    assert read_ledger(tmp_path / LEDGER) == rows
    write_json(tmp_path / SUITES, [RETENTION.model_dump(mode="json")])
    verdict = judge(rows, [RETENTION]).to_dict() | {
        "backbone": "b",
        "adapter": "a",
        "suite_digests": {"keep": RETENTION.digest},
    }
    write_json(tmp_path / VERDICT, verdict)
    check_verdict(tmp_path)
    verdict["suites"][0]["tasks"][0]["adapter"] = 0.99
    (tmp_path / VERDICT).write_text(json.dumps(verdict))
    with pytest.raises(EvaluationError, match="does not follow from the ledger"):
        check_verdict(tmp_path)


def test_what_is_no_ledger_is_told(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text("not parquet")
    with pytest.raises(EvaluationError, match="cannot be read as a ledger"):
        read_ledger(tmp_path / LEDGER)


def test_the_bundled_suites_are_valid_and_say_why_their_margins() -> None:
    assert set(suite_names()) == {"docstrings", "core-retention"}
    for name in suite_names():
        suite = Suite.load(name)
        assert all(task.why for task in suite.tasks if task.margin is not None)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("role: gain", "takes no `margin`"),
        ("role: keep", "role"),
        ("alpha: 2", "alpha"),
        ("taks: []", "did you mean `tasks`"),
    ],
)
def test_a_suite_that_cannot_work_is_refused(tmp_path: Path, change: str, part: str) -> None:
    lines = {
        "name": "name: mine",
        "role": "role: retention",
        "tasks": "tasks: [{name: a, kind: loss, source: x, margin: 0.1}]",
    }
    lines[change.split(":")[0]] = change
    path = tmp_path / "suite.yaml"
    path.write_text("\n".join(lines.values()) + "\n")
    with pytest.raises(RecipeError) as caught:
        Suite.load(path)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ("{name: a, kind: loss, source: x, margin: 0.1, metric: chrf}", "takes no `metric`"),
        ("{name: a, kind: generation, source: x, margin: 0.1}", "takes a `metric`"),
        ("{name: a, kind: loss, source: x}", "needs a `margin`"),
        ("{name: a, kind: loss, source: x, margin: 0}", "greater than 0"),
    ],
)
def test_an_option_is_used_or_refused(tmp_path: Path, task: str, part: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"name: mine\nrole: retention\ntasks: [{task}]\n")
    with pytest.raises(RecipeError) as caught:
        Suite.load(path)
    assert part in str(caught.value)
