"""Evaluation of arms: same batches for all arms, resuming and caching."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine import model_answers as engine
from lora_kit.evaluation.engine.journal import Journal
from lora_kit.evaluation.engine.rounding import RoundingBound
from lora_kit.evaluation.harness import (
    LEDGER,
    VERDICT,
    Evaluation,
)
from lora_kit.evaluation.ledger import DRIFT, Entry, read_ledger
from lora_kit.evaluation.verdict_file import check_verdict
from tests.evaluation.counting import count_outcomes
from tests.evaluation.engine_runs import KEEP, evaluation_of, scores


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def evaluate(tiny_backbone: Backbone, tmp_path: Path) -> Callable[..., Evaluation]:
    return evaluation_of(tiny_backbone, tmp_path)


def test_an_adapter_that_does_nothing_changes_nothing(evaluate: Callable[..., Evaluation]) -> None:
    done = evaluate(b=0.0)
    found = scores(done.read_entries())
    for (task, arm, item), score in found.items():
        if arm == "adapter":
            assert score == found[task, "base", item]
        if arm == DRIFT:
            assert score is not None
            assert abs(score) < 1e-6
    for suite in done.verdict.suites:
        for task in suite.tasks:
            assert (task.won, task.lost, task.interval.delta) == (0, 0, 0.0)
            assert not task.alarm
    assert {e.arm for e in done.read_entries()} == {"base", "adapter", DRIFT}


def test_an_adapter_that_does_something_is_seen(evaluate: Callable[..., Evaluation]) -> None:
    done = evaluate(b=2.0)
    (prose,) = [t for s in done.verdict.suites for t in s.tasks if t.task == "prose"]
    assert prose.interval.delta != 0
    assert prose.drift is not None
    assert prose.drift.interval.delta > 1e-4
    assert prose.drift.prompts == 8


@pytest.mark.parametrize("after", [3, 8])
def test_a_run_that_is_cut_off_goes_on_from_there(
    evaluate: Callable[..., Evaluation],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    after: int,
) -> None:
    # Small batches, so that the run can be interrupted between two of them.
    monkeypatch.setattr("lora_kit.evaluation.engine.batching.MAX_BATCH_ITEMS", 8)
    whole = evaluate(b=1.0, to="whole")
    real, calls = engine.compute_outcomes, []

    def dying(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*arguments)

    # Another cache, so that the journal alone can provide earlier results.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-cache"))
    with monkeypatch.context() as patched:
        patched.setattr(engine, "compute_outcomes", dying)
        with pytest.raises(KeyboardInterrupt):
            evaluate(b=1.0, to="cut")
    assert not (tmp_path / "cut" / LEDGER).exists()
    journal = Journal(tmp_path / "cut", 0)
    (path,) = (tmp_path / "cut").glob(".journal-*")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = sum(record["entry"]["arm"] != DRIFT for record in records)
    with path.open("a") as stream:
        stream.write('{"key": "half a li')
    asked = count_outcomes(monkeypatch)
    resumed = evaluate(b=1.0, to="cut")
    assert scores(resumed.read_entries()) == scores(whole.read_entries())
    measured = sum(e.arm != DRIFT for e in whole.read_entries())
    # The base of the interrupted batch is in the cache; all other items are scored once.
    assert measured - kept - 8 <= sum(asked) <= measured - kept
    assert not list((tmp_path / "cut").glob(".journal-*"))
    assert journal.done(["no such key"]) == {"no such key": set()}


def test_the_base_is_measured_once_for_all_adapters(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(b=1.0, to="first")
    asked = count_outcomes(monkeypatch)
    second = evaluate(b=2.0, to="second")
    items = sum(e.arm == "adapter" for e in first.read_entries())
    assert sum(asked) == items
    base = {k: v for k, v in scores(second.read_entries()).items() if k[1] == "base"}
    assert base == {k: v for k, v in scores(first.read_entries()).items() if k[1] == "base"}
    asked.clear()
    evaluate(b=2.0, to="second", no_cache=True)
    assert sum(asked) == 2 * items


def test_an_arm_is_added_without_measuring_the_others_again(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_first = scores(evaluate(b=1.0).read_entries())
    asked = count_outcomes(monkeypatch)
    second = evaluate(b=1.0, arms=("base", "adapter", "fewshot"))
    assert sum(asked) == 6
    shown = [e for e in second.read_entries() if e.arm == "fewshot"]
    assert [e.task for e in shown] == ["lines"] * 6  # a baseline for gain tasks only
    assert of_first == {k: v for k, v in scores(second.read_entries()).items() if k in of_first}
    (task,) = [t for s in second.verdict.suites if s.role == "gain" for t in s.tasks]
    assert [baseline.arm for baseline in task.baselines] == ["fewshot"]
    check_verdict(tmp_path / "out")


def test_another_suite_of_the_same_name_is_measured_anew(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(suites=[KEEP])
    fewer = {**KEEP, "tasks": [{**KEEP["tasks"][0], "shots": 1}, KEEP["tasks"][1]]}  # type: ignore[dict-item]
    asked = count_outcomes(monkeypatch)
    evaluate(suites=[fewer])
    assert sum(asked) == 32  # both arms of the changed task only


def test_the_ledger_holds_what_the_verdict_needs(
    evaluate: Callable[..., Evaluation], tmp_path: Path
) -> None:
    done = evaluate(b=1.0)
    assert read_ledger(tmp_path / "out" / LEDGER) == list(done.read_entries())
    quiz = next(e for e in done.read_entries() if e.task == "quiz" and e.arm == "adapter")
    assert len(quiz.log_likelihoods) == len(quiz.choices) == 4
    assert quiz.slices["field"]
    check_verdict(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / VERDICT).read_text())
    assert {tuple(where)[2] for where in stored["keys"].values()} == {"base", "adapter", DRIFT}


def test_a_ledger_entry_survives_the_disk() -> None:
    entry = Entry("a", "s", "t", "i", "c", None, "o", "p", "r", 1, 0.5, {"f": "v"}, {"m": 1.0})
    assert Entry.from_row(json.loads(json.dumps(dataclasses.asdict(entry)))) == entry


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Longest request of each search for a layout."""
    longest, find = [], engine.find_layout

    def counting(scorer: Any, requests: Sequence[Any], prefix_ids: tuple[int, ...]) -> Any:
        longest.append(max(request.length for request in requests))
        return find(scorer, requests, prefix_ids)

    monkeypatch.setattr(engine, "find_layout", counting)
    return longest


def test_a_layout_is_searched_once_for_tasks_of_a_kind_and_anew_for_much_longer_items(
    evaluate: Callable[..., Evaluation], searched: list[int]
) -> None:
    common = {"kind": "loss", "source": "python-reference", "limit": 8, "margin": 0.1}
    lengths = {"short": 20, "as_short": 20, "long": 400}
    tasks = [{"name": name, **common, "max_length": lengths[name]} for name in lengths]
    evaluate(suites=[{"name": "keep", "role": "retention", "tasks": tasks}])
    short, long = searched
    assert short <= 20
    assert long > 4 * short


def test_a_layout_is_known_to_the_next_evaluation(
    evaluate: Callable[..., Evaluation], searched: list[int], tmp_path: Path
) -> None:
    first = evaluate(b=0.5)
    kinds = len(searched)
    assert kinds
    again = evaluate(b=0.5, to="again")
    assert len(searched) == kinds
    assert scores(again.read_entries()) == scores(first.read_entries())
    for path in (tmp_path / "cache" / "lora_kit" / "layouts").iterdir():
        path.write_text('{"tree": "maybe"}')
    evaluate(b=0.5, to="unreadable")
    assert len(searched) == 2 * kinds
    evaluate(b=0.5, to="uncached", no_cache=True)
    assert len(searched) == 3 * kinds


def test_the_slowest_layout_is_searched_again(
    evaluate: Callable[..., Evaluation], searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning may come with a slow layout, and would be lost."""
    monkeypatch.setattr(RoundingBound, "explains", lambda *_: False)
    evaluate()
    kinds = len(searched)
    evaluate(to="again")
    assert len(searched) == 2 * kinds
