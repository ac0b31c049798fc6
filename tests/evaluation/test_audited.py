"""Prompts and answers that the audit compares, for each kind of task."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_kit.backbone.load import Backbone
from lora_kit.data.audit.item import AuditedItem
from lora_kit.evaluation.audited import audited_item, audited_items
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.tasks import build_task


def audited(tokenizer: Any, **fields: Any) -> list[AuditedItem]:
    suite = Suite.model_validate({"name": "s", "role": "gain", "tasks": [{"name": "t", **fields}]})
    (spec,) = suite.tasks
    return [audited_item(suite, spec, item) for item in build_task(spec, tokenizer, 0).items]


def test_planned_work_gives_all_its_items(tiny_backbone: Backbone) -> None:
    work = plan_work([Suite.load("bias")], tiny_backbone)
    found = audited_items(work)
    assert [one.id for one in found] == [item.id for one in work for item in one.task.items]
    assert {(one.suite, one.task, one.gain) for one in found} == {("bias", "who-was-it", False)}


def lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_question_is_asked_without_its_template(tokenizer: Any, tmp_path: Path) -> None:
    source = lines(
        tmp_path / "q.jsonl",
        {"question": "Is water\nwet?", "choices": ["yes", "no"], "answer": 0, "field": "physics"},
    )
    template = "On {field}, briefly: {question}\nAnswer:"
    (one,) = audited(tokenizer, kind="multiple_choice", source=source, template=template)
    assert (one.prompt, one.answers, one.gain) == ("physics\nIs water\nwet?", ("yes",), True)


def test_a_text_to_classify_goes_with_its_label(tokenizer: Any, tmp_path: Path) -> None:
    source = lines(
        tmp_path / "c.jsonl",
        {"text": "I loved it.", "label": "good"},
        {"text": "I left early.", "label": "bad"},
    )
    found = audited(tokenizer, kind="classification", source=source)
    assert [(one.prompt, one.answers) for one in found] == [
        ("I loved it.", ("good",)),
        ("I left early.", ("bad",)),
    ]


def test_any_reference_of_a_generation_is_an_answer(tokenizer: Any, tmp_path: Path) -> None:
    source = lines(tmp_path / "g.jsonl", {"prompt": "Say hello.", "references": ["Hi", "Hello"]})
    (one,) = audited(tokenizer, kind="generation", source=source, metric="chrf")
    assert (one.prompt, one.answers) == ("Say hello.", ("Hi", "Hello"))


def test_a_text_whose_loss_is_taken_is_an_answer_to_nothing(tokenizer: Any, tmp_path: Path) -> None:
    source = lines(tmp_path / "l.jsonl", {"text": "Once upon a time."})
    (one,) = audited(tokenizer, kind="loss", source=source)
    assert (one.prompt, one.answers) == ("", ("Once upon a time.",))


def test_an_instruction_has_no_answer(tokenizer: Any) -> None:
    found = audited(tokenizer, kind="instructions", source="instructions", limit=5)
    assert all(one.prompt and not one.answers for one in found)


def harness_task(tmp_path: Path, rows: list[dict[str, Any]], **fields: Any) -> str:
    data = lines(tmp_path / "data.jsonl", *rows)
    path = tmp_path / "task.yaml"
    known = {
        "task": "audited",
        "test_split": "test",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path.write_text(yaml.safe_dump(known | fields))
    return str(path)


def test_solved_examples_of_lm_eval_are_not_asked(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"question": f"What is made of {what}, mostly?", "choices": ["a", "b"], "answer": n % 2}
        for n, what in enumerate(("wood", "iron", "glass", "wool"))
    ]
    source = harness_task(
        tmp_path,
        rows,
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        fewshot_split="test",
    )
    found = audited(tokenizer, kind="lm_eval", source=source, shots=2)
    assert [one.prompt for one in found] == [row["question"] for row in rows]
    assert [one.answers for one in found] == [("a",), ("b",), ("a",), ("b",)]


def test_choices_that_are_contexts_are_asked_with_the_right_one(
    tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    row = {"before": "The cup broke", "names": ["cat", "rug"], "after": "jumped.", "is": 1}
    source = harness_task(
        tmp_path,
        [row],
        doc_to_text="{{is}}",
        doc_to_choice="{{['As the ' + names[0], 'As the ' + names[1]]}}",
        doc_to_target="{{after}}",
    )
    (one,) = audited(tokenizer, kind="lm_eval", source=source)
    assert (one.prompt, one.answers) == ("As the rug", ("jumped.",))
