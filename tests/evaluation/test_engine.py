"""Evaluation of arms: same batches for all arms, resuming, halving and caching."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.arms import models
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.engine import arm_task, run
from lora_kit.evaluation.engine import model_answers as engine
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.evaluation.engine.journal import Journal
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.rounding import RoundingBound
from lora_kit.evaluation.harness import (
    LEDGER,
    VERDICT,
    EvaluatedBackbone,
    Evaluation,
    EvaluationPlan,
    run_evaluation,
)
from lora_kit.evaluation.ledger import DRIFT, Entry, read_ledger
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.requests import ChoiceRequest
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.modeling.drift import prompt_drift
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runs.open_model import LoadedModel, OpenModel
from lora_kit.runs.session import Subject
from lora_kit.runtime.errors import EvaluationError
from tests.evaluation.counting import count_outcomes

KEEP = {
    "name": "keep",
    "role": "retention",
    "tasks": [
        {
            "name": "quiz",
            "kind": "multiple_choice",
            "source": "general-knowledge",
            "limit": 16,
            "shots": 2,
            "margin": 0.1,
        },
        {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 8, "margin": 0.1},
    ],
}
GAIN = {
    "name": "gain",
    "role": "gain",
    "tasks": [
        {
            "name": "lines",
            "kind": "generation",
            "metric": "chrf",
            "source": "stdlib-docstrings",
            "limit": 6,
            "max_new_tokens": 4,
        }
    ],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def evaluate(tiny_backbone: Backbone, tmp_path: Path) -> Callable[..., Evaluation]:
    model = attach(tiny_backbone, AdapterSpec(rank=4), seed=0)

    def run(
        b: float = 0.0,
        arms: Sequence[str] = ("base", "adapter"),
        suites: Sequence[dict[str, Any]] = (KEEP, GAIN),
        to: str = "out",
        no_cache: bool = False,
    ) -> Evaluation:
        adapter = tmp_path / f"adapter-{b}"
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn_like(parameter) * b
        if not adapter.exists():
            model.save_pretrained(adapter)
        spec = EvaluationSpec()
        opened = OpenModel(lambda: LoadedModel(tiny_backbone, model))
        subject = Subject(opened, adapter, None, spec, tmp_path / to, "t", {})
        chosen = [Suite.model_validate(suite) for suite in suites]
        return run_evaluation(
            EvaluationPlan(
                backbone=EvaluatedBackbone.of(tiny_backbone),
                adapter=adapter,
                suites=chosen,
                models=loaded_arms(subject, list(arms)),
                directory=tmp_path / to,
                facts=ReportFacts("t", {}),
                no_cache=no_cache,
            ),
            plan_work(chosen, tiny_backbone, 2 if "fewshot" in arms else 0),
        )

    return run


def scores(entries: Sequence[Entry]) -> dict[tuple[str, str, str], float | None]:
    found = {(e.task, e.arm, e.item): e.score for e in entries}
    assert len(found) == len(entries)
    return found


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


def test_what_does_not_fit_into_memory_is_halved_for_every_arm(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(b=1.0, to="whole")
    real, sizes = engine.compute_outcomes, []

    def small(scorer: Any, requests: Sequence[Any], *rest: Any) -> Any:
        if len(requests) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(requests))
        return real(scorer, requests, *rest)

    monkeypatch.setattr(engine, "compute_outcomes", small)
    halved = evaluate(b=1.0, to="halved", no_cache=True)
    assert max(sizes) <= 5
    of_whole = scores(whole.read_entries())
    for where, score in scores(halved.read_entries()).items():
        assert score == pytest.approx(of_whole[where], abs=1e-3)


def test_a_prefix_that_does_not_fit_into_memory_is_read_with_each_item(
    evaluate: Callable[..., Evaluation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = evaluate(b=1.0, suites=[KEEP], to="whole")
    real, encoded, used = engine.encode_prefix, [], []

    def full_for_the_adapter(*arguments: Any) -> Any:
        encoded.append(arguments)
        if len(encoded) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    real_outcomes = engine.compute_outcomes

    def watched(scorer: Any, requests: Any, layout: Any, prefix: Any, *others: Any) -> Any:
        if isinstance(requests[0], ChoiceRequest):
            used.append((layout.prefix, prefix))
        return real_outcomes(scorer, requests, layout, prefix, *others)

    monkeypatch.setattr(engine, "encode_prefix", full_for_the_adapter)
    monkeypatch.setattr(engine, "compute_outcomes", watched)
    found = evaluate(b=1.0, suites=[KEEP], to="full", no_cache=True)
    # The base's prefix fitted, and is not used either.
    assert len(encoded) == 2
    assert set(used) == {(False, None)}
    of_whole = scores(whole.read_entries())
    for where, score in scores(found.read_entries()).items():
        assert score == pytest.approx(of_whole[where], abs=1e-3)
    assert "keep/quiz: the tokens that all items begin with do not fit" in capsys.readouterr().err


def test_drift_that_does_not_fit_into_memory_is_halved(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(b=1.0, suites=[KEEP], to="whole")
    real, sizes = prompt_drift, []

    def small(model: Any, prompts: Sequence[Any], *rest: Any) -> Any:
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(prompts))
        return real(model, prompts, *rest)

    monkeypatch.setattr(arm_task, "prompt_drift", small)
    halved = evaluate(b=1.0, suites=[KEEP], to="halved")
    assert max(sizes) == 2
    of_whole, of_halved = scores(whole.read_entries()), scores(halved.read_entries())
    assert of_halved.keys() == of_whole.keys()
    for where, score in of_halved.items():
        assert score == pytest.approx(of_whole[where], rel=1e-3, abs=1e-6)


def test_an_item_that_never_fits_is_named(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "compute_outcomes", full)
    with pytest.raises(
        EvaluationError, match=r"item \S+ alone does not fit into memory \(got \d+ tokens\)"
    ):
        evaluate()


def test_another_error_is_not_taken_for_a_lack_of_memory(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(engine, "compute_outcomes", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate()


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


def test_a_model_that_does_not_fit_names_its_arms(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    loads = models._on_backbone
    monkeypatch.setattr(
        models, "_on_backbone", lambda *given: dataclasses.replace(loads(*given), load=too_large)
    )
    wrong = r"the model of base and adapter does not fit into memory \(CUDA .*\)\. Fix: end other"
    with pytest.raises(EvaluationError, match=wrong):
        evaluate()
    # On GPUs, more of them may do.
    arms = (Arm("merged", "", nullcontext),)
    gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(run, "process_state", lambda: gpu)
    with pytest.raises(EvaluationError, match=r"the model of merged .*Fix: spread it .*--gpus\)"):
        run._load(LoadedArms(too_large, arms))
