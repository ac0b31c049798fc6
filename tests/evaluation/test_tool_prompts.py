"""Tools of an instruction: given to a template that knows them, otherwise written in words."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lora_kit.data.rows import Message
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import GenerationRequest
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import build_task
from lora_kit.evaluation.tool_prompts import describe_tools
from lora_kit.runtime.errors import DataError
from tests.families import family_tokenizer

TIDES = {
    "type": "function",
    "function": {
        "name": "tides",
        "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
    },
}
CALL = {"name": "tides", "arguments": {"port": "Dover"}}
ROW = {
    "prompt": "When is high tide in Dover?",
    "tools": [TIDES],
    "checks": [{"kind": "calls", "value": CALL}],
}


def build(tokenizer: Any, folder: Path, row: object, shots: Any = ()) -> Any:
    path = folder / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    spec = TaskSpec(name="t", kind="instructions", source=str(path))
    return build_task(spec, tokenizer, 0, shots)


def prompt(tokenizer: Any, folder: Path, row: object = ROW, shots: Any = ()) -> str:
    (item,) = build(tokenizer, folder, row, shots).items
    assert isinstance(item.request, GenerationRequest)
    return str(tokenizer.decode(list(item.request.prompt_ids)))


@pytest.fixture
def knowing(tokenizer: Any) -> Any:
    """Return the real tokenizer with a template that writes tools as Qwen's does."""
    changed = copy.deepcopy(tokenizer)
    template = Path(__file__).parents[1] / "data" / "thoughts.jinja"
    changed.chat_template = template.read_text()
    return changed


def test_a_template_that_knows_tools_is_given_them(knowing: Any, tmp_path: Path) -> None:
    shown = prompt(knowing, tmp_path)
    assert json.dumps(TIDES) in shown
    assert "# Tools" in shown
    assert describe_tools([TIDES]) not in shown


def test_another_template_gets_them_in_a_system_turn(tokenizer: Any, tmp_path: Path) -> None:
    shown = prompt(tokenizer, tmp_path)
    assert shown.startswith(f"<|im_start|>system\n{describe_tools([TIDES])}<|im_end|>\n")
    assert json.dumps(TIDES["function"]) in shown
    assert '{"name": "NAME OF THE FUNCTION", "arguments":' in shown
    assert shown.index("tides") < shown.index("<|im_start|>user\nWhen is high tide")


def test_a_template_without_system_turns_gets_them_in_the_users(
    tokenizer: Any, tmp_path: Path
) -> None:
    mistral = family_tokenizer(tokenizer, "mistral")
    shown = prompt(mistral, tmp_path)
    assert shown.startswith(f"<s>[INST] {describe_tools([TIDES])}\n\nWhen is high tide")


def test_a_backbone_without_a_template_reads_them_first(tokenizer: Any, tmp_path: Path) -> None:
    bare = copy.copy(tokenizer)
    bare.chat_template = None
    assert prompt(bare, tmp_path) == f"{describe_tools([TIDES])}\nWhen is high tide in Dover?\n"


def test_tools_come_behind_solved_examples(tokenizer: Any, tmp_path: Path) -> None:
    shot = (Message("user", "Say hi."), Message("assistant", "Hi."))
    shown = prompt(tokenizer, tmp_path, shots=[shot])
    assert shown.index("Say hi.") < shown.index("tides") < shown.index("When is high tide")


def test_a_prompt_without_tools_is_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    row = {"prompt": "Say hi.", "checks": [{"kind": "max_words", "value": 3}]}
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hi."}], tokenize=False, add_generation_prompt=True
    )
    assert prompt(tokenizer, tmp_path, row) == expected
    assert prompt(tokenizer, tmp_path, {**row, "tools": None}) == expected


def test_a_row_of_a_file_is_graded_by_its_calls(tokenizer: Any, tmp_path: Path) -> None:
    task = build(tokenizer, tmp_path, ROW)
    (item,) = task.items
    assert item.reference == f"calls: {json.dumps([CALL])}"
    assert task.grade(item, Outcome(text=json.dumps(CALL))).score == 1.0
    assert task.grade(item, Outcome(text="At noon.")).score == 0.0
    assert not task.unused


def test_tools_may_be_json_text(tokenizer: Any, tmp_path: Path) -> None:
    row = {**ROW, "tools": json.dumps([TIDES])}
    assert prompt(tokenizer, tmp_path, row) == prompt(tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tools": {}}, r"tools: expected a list of functions \(got \{\}\)"),
        ({"tools": "[{"}, r"tools: not valid JSON \(got '\[\{'\)"),
        ({"tools": ["tides"]}, r"tools\[0\]: expected a function with a name"),
        ({"tools": [TIDES, {"name": "f"}]}, r"tools\[1\]: expected a function with a name"),
        (
            {"tools": [{"function": {"name": "tides", "parameters": {"type": "objekt"}}}]},
            r"tools\[0\]\.function\.parameters: type: 'objekt' is not valid",
        ),
        (
            {"checks": [{"kind": "calls", "value": {"name": "tide", "arguments": {}}}]},
            r"calls: no function of `tools` \(got 'tide'\)\. Fix: use one of tides",
        ),
        (
            {"checks": [{"kind": "calls", "value": {"name": "tides"}}]},
            "calls: a call has name, arguments",
        ),
        (
            {"checks": [{"kind": "json_schema", "value": {"minimum": "1"}}]},
            r"json_schema: minimum: .* \(got '1'\)",
        ),
    ],
)
def test_a_slip_in_a_file_is_named_with_its_row(
    changes: dict[str, object], message: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"t\.jsonl:1: instruction .*{message}"):
        build(tokenizer, tmp_path, {**ROW, **changes})
