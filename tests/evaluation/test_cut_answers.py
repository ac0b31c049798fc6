"""Answers that were cut at max_new_tokens: told by every engine, reported, never scored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.cut_answers import CUT_OFF
from lora_kit.evaluation.engine.outcome_cache import OutcomeCache
from lora_kit.evaluation.engine.scoring import BatchLayout, Scorer, compute_outcomes
from lora_kit.evaluation.engines.completions import Completions
from lora_kit.evaluation.item import Item, Outcome
from lora_kit.evaluation.reporting.views import suite_reports
from lora_kit.evaluation.reporting.wrong_items import find_wrong
from lora_kit.evaluation.requests import GenerationRequest, SampledRequest, Sampling
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import build_task
from lora_kit.evaluation.thoughts import Thinking
from tests.evaluation.in_memory import arm, find_flips, judge, one_task

FIRST_LINE: dict[str, Any] = {"kind": "generation", "metric": "exact_match"}
FIRST_LINE |= {"scored_text": "first_line"}


def generated(
    backbone: Backbone, requests: list[GenerationRequest], stops: tuple[int, ...] = ()
) -> list[Outcome]:
    scorer = Scorer(backbone.model, backbone.tokenizer, stops)
    return compute_outcomes(scorer, requests, BatchLayout(tree=False, prefix=False))


def test_a_model_s_answer_is_cut_unless_a_token_or_a_text_ends_it(tiny_backbone: Backbone) -> None:
    request, other = GenerationRequest((5, 6, 7), 4), GenerationRequest((9, 8), 4)
    [whole, second] = generated(tiny_backbone, [request, other])
    assert whole.cut_off == second.cut_off == (True,)
    new = tiny_backbone.model.generate(
        tiny_backbone.model.dummy_inputs["input_ids"].new_tensor([[5, 6, 7]]),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
    )[0, 3:].tolist()
    # Also by its last possible token, and beside a row that goes on.
    for end in dict.fromkeys(new):
        [ended, _] = generated(tiny_backbone, [request, other], (end,))
        assert ended.cut_off == (False,)
    by_text = replace(request, stop=(whole.text[-2:],))
    [ended] = generated(tiny_backbone, [by_text])
    assert ended.text == whole.text[: whole.text.index(whole.text[-2:])]
    assert ended.cut_off == (False,)
    sampled = SampledRequest((5, 6, 7), 4, (), Sampling(3, 1.0, 1.0, 0))
    assert generated(tiny_backbone, [sampled])[0].cut_off == (True,) * 3


@pytest.mark.parametrize(
    ("reasons", "cut_off"),
    [
        (("length", "stop"), (True, False)),
        (("length", None), ()),
        (("abort", "stop"), ()),
    ],
)
def test_a_server_says_why_each_answer_ended(
    reasons: tuple[str | None, ...], cut_off: tuple[bool, ...], tiny_backbone: Backbone
) -> None:
    class Server:
        url = "http://here"

        def post(self, path: str, body: Any) -> Any:
            answers = [{"text": "a", "finish_reason": reason} for reason in reasons]
            return {"choices": [{"index": n, **one} for n, one in enumerate(answers)]}

    served = Completions(Server(), "mine", tiny_backbone.tokenizer)  # type: ignore[arg-type]
    outcome = served.outcome(SampledRequest((5, 6), 7, (), Sampling(2, 0.7, 0.9, 1)))
    assert outcome.cut_off == cut_off


def graded(tmp_path: Path, tokenizer: Any, outcome: Outcome, **fields: Any) -> Any:
    row = {"id": "a", "prompt": "Say A.", "checks": [{"kind": "choice", "value": ["A"]}]}
    if fields.get("kind") == "generation":
        row = {"id": "a", "prompt": "Say A.", "completion": "A"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    thinking = Thinking(fields.pop("thinking", 0))
    given = {"name": "say", "kind": "instructions", "source": str(path), "max_new_tokens": 4}
    spec = TaskSpec.model_validate(given | fields)
    task = build_task(spec, tokenizer, 0, thinking=thinking)
    item: Item = task.items[0]
    return task.grade(item, outcome)


@pytest.mark.parametrize(
    ("outcome", "fields", "share"),
    [
        (Outcome(text="A", cut_off=(True,)), {}, 1.0),
        (Outcome(text="A", cut_off=(False,)), {}, 0.0),
        (Outcome(text="A"), {}, None),
        (Outcome(text="A", samples=("A", "B"), cut_off=(True, False)), {"samples": 2}, 0.5),
        (Outcome(text="<think>A", cut_off=(True,)), {"thinking": 9}, 1.0),
        (Outcome(text="A\nB", cut_off=(True,)), FIRST_LINE, 0.0),
        (Outcome(text="A", cut_off=(True,)), FIRST_LINE, 1.0),
        (Outcome(text="\nA", cut_off=(True,)), FIRST_LINE, 1.0),
    ],
)
def test_the_share_of_cut_answers_is_a_measure_and_no_score(
    outcome: Outcome, fields: dict[str, Any], share: float | None, tmp_path: Path, tokenizer: Any
) -> None:
    found = graded(tmp_path, tokenizer, outcome, **fields)
    assert found.measures.get(CUT_OFF) == share
    assert found.score == graded(tmp_path, tokenizer, replace(outcome, cut_off=()), **fields).score


@pytest.mark.parametrize(("share", "warned"), [(0.1, False), (0.11, True)])
def test_many_cut_answers_are_said_first(share: float, warned: bool) -> None:
    def cut(part: float) -> Any:
        return lambda n: {CUT_OFF: float(n < 100 * part)}

    right = [1.0] * 100
    entries = arm("base", right, measures=cut(0)) + arm("adapter", right, measures=cut(share))
    verdict = judge(entries, [one_task("retention")])
    [measure] = verdict.suites[0].tasks[0].measures
    # Fewer are better.
    assert (measure.adapter, measure.interval.delta) == pytest.approx((share, -share))
    [report] = suite_reports(verdict, find_flips(entries, verdict), find_wrong(entries, verdict))
    [row] = report.tasks[0].measures
    assert (row.result, row.values.unit) == ("cut off answers, lower is better", "pp")
    assert [one.kind for one in verdict.findings] == ["answers cut off"] * warned
    if warned:
        assert "11% of the adapter's on quiz were cut at max_new_tokens" in verdict.findings[0].text


def test_a_cached_answer_says_if_it_was_cut(tmp_path: Path) -> None:
    cache, path = OutcomeCache(tmp_path, "model", "here"), tmp_path / "batch.json"
    outcomes = [Outcome(text="A", cut_off=(True,)), Outcome(text="B", cut_off=(False,))]
    cache.write(path, outcomes)
    assert cache.read(path) == outcomes
    stored = json.loads(path.read_text())
    del stored["outcomes"][0]["cut_off"]
    path.write_text(json.dumps(stored))
    assert cache.read(path) is None
