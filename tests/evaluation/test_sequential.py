"""Evaluation look by look: what each arm is asked, resuming, and the ledger that is left."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.engine import model_answers, run
from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
from lora_kit.evaluation.engine.journal import Journal, Journals
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.progress import Progress, shared_progress
from lora_kit.evaluation.engine.run import TaskPath, evaluate_models
from lora_kit.evaluation.engine.sharing import work_shares
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.harness import (
    LEDGER,
    EvaluatedBackbone,
    Evaluation,
    EvaluationPlan,
    run_evaluation,
)
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.stopping import LookPlan, PlannedTask, Stopping
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict_file import check_verdict
from lora_kit.modeling.modes import adapter_disabled
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runs.open_model import LoadedModel, OpenModel
from lora_kit.runs.session import Subject
from lora_kit.runtime.console import Meter
from tests.evaluation.counting import count_outcomes

ITEMS = 200
STOPPING = Stopping(looks=5)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def keep(tmp_path: Path) -> Suite:
    """Return a suite of 200 short texts, and of 20 items that are asked at once."""
    source = tmp_path / "texts.jsonl"
    rows = [{"text": f"{n} times {n} is {n * n}."} for n in range(ITEMS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"kind": "multiple_choice", "source": "reasoning", "limit": 20, "shots": 1}
    return Suite.model_validate(
        {
            "name": "keep",
            "role": "retention",
            "tasks": [
                {"name": "texts", "kind": "loss", "source": str(source), "margin": 0.05},
                {"name": "few", "margin": 0.1, **few},
            ],
        }
    )


@pytest.fixture
def adapted(tiny_backbone: Backbone) -> Any:
    """Return the backbone's model with an adapter that changes nothing."""
    return attach(tiny_backbone, AdapterSpec(rank=4), seed=0)


@pytest.fixture
def work(adapted: Any, tiny_backbone: Backbone, keep: Suite) -> list[Work]:
    return plan_work([keep], tiny_backbone, stopping=STOPPING)


@pytest.fixture
def evaluate(
    adapted: Any, tiny_backbone: Backbone, work: list[Work], keep: Suite, tmp_path: Path
) -> Callable[..., Evaluation]:
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)

    def run(to: str = "out", stopping: Stopping = STOPPING) -> Evaluation:
        opened = OpenModel(lambda: LoadedModel(tiny_backbone, adapted))
        subject = Subject(opened, adapter, None, EvaluationSpec(), tmp_path / to, "t", {})
        return run_evaluation(
            EvaluationPlan(
                backbone=EvaluatedBackbone.of(tiny_backbone),
                adapter=adapter,
                suites=[keep],
                models=loaded_arms(subject, ["base", "adapter"]),
                directory=tmp_path / to,
                facts=ReportFacts("t", {}),
                stopping=stopping,
            ),
            work if stopping == STOPPING else plan_work([keep], tiny_backbone, stopping=stopping),
        )

    return run


def test_items_are_cut_into_looks_by_cluster(work: list[Work]) -> None:
    texts, few = work
    assert texts.looks == 5
    assert few.looks == 1
    asked = [[n for batch in texts.batches_of(range(k, k + 1)) for n in batch] for k in range(1, 6)]
    assert [len(of_look) for of_look in asked] == [40] * 5
    assert sorted(n for of_look in asked for n in of_look) == list(range(ITEMS))
    for k, of_look in enumerate(asked, start=1):
        assert {texts.look_of(texts.task.items[n].id) for n in of_look} == {k}
    assert few.batches_of(range(2, 6)) == ()
    assert few.batches_of(range(1, 2)) == few.batches


def test_nothing_is_asked_after_a_decision(
    evaluate: Callable[..., Evaluation], tmp_path: Path
) -> None:
    done = evaluate()
    texts, few = done.verdict.suites[0].tasks
    assert (texts.decision, texts.looks.ended_at, texts.looks.reason) == ("PASS", 1, "decided")
    assert (texts.looks.asked, texts.looks.items, texts.interval.items) == (40, ITEMS, 40)
    assert (few.looks.planned, few.looks.reason) == (1, "last look")
    entries = done.read_entries()
    for arm in ("base", "adapter"):
        assert sum(entry.arm == arm and entry.task == "texts" for entry in entries) == 40
    assert {entry.look for entry in entries if entry.task == "texts"} == {1}
    assert {entry.look for entry in entries if entry.arm == "drift"} == {1}
    ledger = Ledger(tmp_path / "out" / LEDGER)
    plan = LookPlan.from_dict(ledger.plan)
    assert plan == LookPlan(
        STOPPING,
        {
            "keep/texts": PlannedTask(ITEMS, (40, 80, 120, 160, 200)),
            "keep/few": PlannedTask(20, (20,)),
        },
    )
    check_verdict(tmp_path / "out")


def test_all_items_are_asked_without_stopping(
    evaluate: Callable[..., Evaluation], tmp_path: Path
) -> None:
    done = evaluate(stopping=Stopping())
    texts, _ = done.verdict.suites[0].tasks
    assert (texts.looks.planned, texts.looks.asked, texts.interval.confidence) == (1, ITEMS, 0.9)
    check_verdict(tmp_path / "out")


def test_a_finished_evaluation_asks_nothing_again(
    evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate()
    asked = count_outcomes(monkeypatch)
    assert evaluate().verdict == first.verdict
    assert asked == []


@pytest.mark.parametrize("after", [1, 4, 9])
def test_an_evaluation_that_is_cut_off_takes_the_same_path(
    adapted: Any,
    evaluate: Callable[..., Evaluation],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    after: int,
) -> None:
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter)
    whole = evaluate(to="whole")
    assert whole.verdict.suites[0].tasks[0].looks.ended_at > 2
    real, calls = model_answers.compute_outcomes, []

    def failing(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path / "other-cache"))
        patched.setattr(model_answers, "compute_outcomes", failing)
        with pytest.raises(KeyboardInterrupt):
            evaluate(to="cut")
    cut = evaluate(to="cut")
    assert cut.verdict == whole.verdict
    ids = [(e.arm, e.task, e.item, e.look) for e in whole.read_entries()]
    assert [(e.arm, e.task, e.item, e.look) for e in cut.read_entries()] == ids


def test_a_prefix_is_read_once_for_all_looks(
    adapted: Any, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"name": "quiz", "kind": "multiple_choice", "source": "general-knowledge", "shots": 1}
    suite = {"name": "aim", "role": "gain", "tasks": [task | {"limit": 120}]}
    work = plan_work([Suite.model_validate(suite)], tiny_backbone, stopping=STOPPING)
    assert work[0].looks == 3
    encoded = []
    real = model_answers.encode_prefix
    monkeypatch.setattr(
        model_answers, "encode_prefix", lambda *given: encoded.append(1) or real(*given)
    )
    arms = (Arm("base", "b", adapter_disabled), Arm("adapter", "a", nullcontext))
    journal = Journal(tmp_path, 0)
    journal.open()
    context = EvaluationContext(tiny_backbone.tokenizer, (), journal, {}, no_cache=True)
    judge = FixedJudge({})
    assert evaluate_models([LoadedArms(lambda: adapted, arms)], work, context, judge) == {
        "aim/quiz": TaskPath(3, 3)
    }
    assert judge.asked == [{"aim/quiz": 1}, {"aim/quiz": 2}]
    layouts_searched = 1
    assert len(encoded) <= 2 + layouts_searched


@pytest.mark.parametrize("end", [1, 2, 3])
def test_a_look_that_may_not_be_asked_is_half_of_the_time_left(
    adapted: Any, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    task = {"name": "quiz", "kind": "multiple_choice", "source": "general-knowledge", "limit": 120}
    suite = {"name": "aim", "role": "gain", "tasks": [task]}
    work = plan_work([Suite.model_validate(suite)], tiny_backbone, stopping=STOPPING)
    assert work[0].looks == 3
    journal = Journal(tmp_path, 0)
    journal.open()
    context = EvaluationContext(tiny_backbone.tokenizer, (), journal, {}, no_cache=True)
    models = [LoadedArms(lambda: adapted, (Arm("adapter", "a", nullcontext),))]
    costs = [run._left_to_ask(models, work, context, [range(n, n + 1)])[1] for n in (1, 2, 3)]
    left: list[float] = []
    shown: list[Progress] = []

    @contextmanager
    def shared(meter: Meter, cost: float) -> Iterator[Progress]:
        left.append(cost)
        with shared_progress(meter, cost) as progress:
            shown.append(progress)
            yield progress

    class NotingJudge(FixedJudge):
        def ended(self, asked: Mapping[str, int]) -> set[str]:
            left.append(shown[0].forecast.left)
            return super().ended(asked)

    monkeypatch.setattr(run, "shared_progress", shared)
    evaluate_models(models, work, context, NotingJudge({"aim/quiz": end}))
    first, second, third = costs
    expected = [first + (second + third) / 2, (second + third) / 2, third / 2]
    assert left == pytest.approx(expected[: min(end, 2) + 1])
    assert shown[0].forecast.left == pytest.approx(0)


class FixedJudge:
    """Judge that ends the tasks at given looks, and counts what it is asked."""

    def __init__(self, ends: Mapping[str, int], merged: Collection[str] = ()):
        self.ends, self.merged = ends, merged
        self.asked: list[dict[str, int]] = []

    def ended(self, asked: Mapping[str, int]) -> set[str]:
        self.asked.append(dict(asked))
        return {name for name, look in asked.items() if self.ends.get(name) == look}

    def undecided_merged(self, ended: Mapping[str, int]) -> Collection[str]:
        return self.merged


@pytest.mark.parametrize(
    ("end", "onward", "of_base", "of_merged"),
    [(2, (), 80, 80), (2, ("keep/texts",), 200, 200), (5, (), 200, 200)],
)
def test_other_models_are_asked_what_the_first_was(
    adapted: Any,
    tiny_backbone: Backbone,
    work: list[Work],
    tmp_path: Path,
    end: int,
    onward: tuple[str, ...],
    of_base: int,
    of_merged: int,
) -> None:
    loads = []

    def load(name: str) -> Callable[[], Any]:
        return lambda: loads.append(name) or adapted

    models = [
        LoadedArms(
            load("first"),
            (Arm("base", "b", adapter_disabled), Arm("adapter", "a", nullcontext)),
            drift_identity="d",
        ),
        LoadedArms(load("scratch"), (Arm("scratch", "s", nullcontext),)),
        LoadedArms(load("merged"), (Arm("merged", "m", nullcontext),)),
        LoadedArms(load("control"), (Arm("base-nf4", "b", nullcontext),)),
    ]
    journal = Journal(tmp_path, 0)
    journal.open()
    context = EvaluationContext(tiny_backbone.tokenizer, (), journal, {}, no_cache=True)
    judge = FixedJudge({"keep/texts": end}, onward)
    paths = evaluate_models(models, work, context, judge)
    merged = 5 if onward else end
    assert paths == {"keep/texts": TaskPath(end, merged), "keep/few": TaskPath(1, 1)}
    # A look that asks the last items needs no judge.
    assert judge.asked == [{"keep/texts": look} for look in range(1, min(end, 4) + 1)]
    texts = work[0]
    names = ("base", "adapter", "scratch", "merged", "base-nf4")
    keys = {name: texts.key(name, name[0]) for name in names}
    found = {name: len(Journals(tmp_path, [key]).items(key)) for name, key in keys.items()}
    of_adapter = 40 * end
    assert found == {
        "base": of_base,
        "adapter": of_adapter,
        "scratch": of_adapter,
        "merged": of_merged,
        "base-nf4": of_merged,
    }
    again = ["first", "merged", "control"] if onward else []
    assert loads == ["first", "scratch", "merged", "control", *again]


def test_shares_are_of_the_looks_that_are_asked(adapted: Any, work: list[Work]) -> None:
    arms = LoadedArms(lambda: None, (Arm("base", "b", adapter_disabled),), drift_identity="d")
    context = EvaluationContext(None, (), None, {})  # type: ignore[arg-type]
    for processes in (1, 3):
        for look in (1, 2, 5):
            looks = [range(look, look + 1), range(0)]
            found = work_shares(work, arms, context, processes, looks)
            batches = [batch for share in found for batch in share[0].batches]
            assert sorted(batches) == sorted(work[0].batches_of(looks[0]))
            assert not any(share[1] for share in found)
            # Drift is of the items of the first look.
            assert any(share[0].drift for share in found) == (look == 1)


def test_drift_is_of_items_that_every_path_asks(evaluate: Callable[..., Evaluation]) -> None:
    task = evaluate().verdict.suites[0].tasks[0]
    assert task.drift is not None
    assert task.drift.prompts == 8
    assert torch.isclose(torch.tensor(task.drift.interval.delta), torch.tensor(0.0), atol=1e-6)
