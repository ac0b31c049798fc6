"""Supervised turns of a conversation, by `data.train_on` and chat template."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lora_kit.data.dataset import prepare
from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.tokenization import tokenize, tokenize_rows
from lora_kit.recipe.data import DataSpec, TrainOn
from lora_kit.runtime.errors import DataError
from tests.training_rows import training_rows

CHAT = (
    Message("system", "Be short."),
    Message("user", "Name a colour."),
    Message("assistant", "Blue."),
    Message("user", "Another."),
    Message("assistant", "Red."),
)
CALL = {"function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL_ROW = {
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
    "messages": [
        {"role": "user", "content": "What is 1 more?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ],
}


@pytest.fixture
def thinker(tokenizer: Any) -> Any:
    """Return the real tokenizer with a template that rewrites earlier turns."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (Path(__file__).parent / "thoughts.jinja").read_text()
    return changed


def row(*messages: Message, **fields: Any) -> Row:
    return Row("rows.jsonl:1", "c", messages, **fields)


def learned(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX]))


def shown(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode(list(example.input_ids)))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("assistant", "Blue.<|im_end|>Red.<|im_end|>"),
        ("last", "Red.<|im_end|>"),
        ("completion", "Red.<|im_end|>"),
        (["user"], "Name a colour.<|im_end|>Another.<|im_end|>"),
        (["system", "assistant"], "Be short.<|im_end|>Blue.<|im_end|>Red.<|im_end|>"),
        (["tool"], ""),
    ],
)
def test_train_on_selects_the_supervised_turns(
    tokenizer: Any, labels: TrainOn, expected: str
) -> None:
    assert learned(tokenizer, tokenize(row(*CHAT), tokenizer, 512, labels)) == expected


def test_train_on_all_supervises_all_but_the_first_token(tokenizer: Any) -> None:
    example = tokenize(row(*CHAT), tokenizer, 512, "all")
    assert example.labels == (IGNORE_INDEX, *example.input_ids[1:])
    assert shown(tokenizer, example).endswith("Red.<|im_end|>\n")


def test_train_on_all_allows_a_conversation_that_ends_with_the_user(
    tokenizer: Any, tmp_path: Path
) -> None:
    turns = [{"role": message.role, "content": message.content} for message in CHAT[:4]]
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    spec = DataSpec.model_validate({"train": [{"source": str(path)}], "train_on": "all"})
    data = prepare(training_rows(spec, seed=0)[0], tokenizer, spec)
    (example,) = data.examples
    asked = "<|im_start|>user\nAnother.<|im_end|>\n"
    assert learned(tokenizer, example).endswith(f"Blue.<|im_end|>\n{asked}")
    for labels in ("assistant", "last", "completion", ["user", "assistant"]):
        other = spec.model_copy(update={"train_on": labels})
        with pytest.raises(
            DataError, match=r"talks\.jsonl:1: the last turn must be .* \(got the user's\)"
        ):
            prepare(training_rows(other, seed=0)[0], tokenizer, other)


@pytest.mark.parametrize("last", [3, 4])
def test_train_on_all_refuses_a_template_without_an_end_of_turn(tokenizer: Any, last: int) -> None:
    endless = with_template(tokenizer, "{{ m.content }}")
    with pytest.raises(DataError, match="could not learn when to stop"):
        tokenize(row(*CHAT[:last]), endless, 512, "all")
    assert tokenize(row(text="Prose."), endless, 512, "all").supervised


def test_train_on_all_refuses_an_answer_without_an_end_of_turn(tokenizer: Any) -> None:
    """The template here ends only the last assistant turn with a special token."""
    ending = with_template(tokenizer, "{{ m.content }}{% if loop.last %}<|endoftext|>{% endif %}")
    assert tokenize(row(*CHAT[:3]), ending, 512, "all").labels[-1] != IGNORE_INDEX
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* could not learn when to stop"):
        tokenize(row(*CHAT[:4]), ending, 512, "all")


def test_train_on_completion_supervises_all_its_answers(tokenizer: Any) -> None:
    part = row(*CHAT, completion_from=1)
    assert learned(tokenizer, tokenize(part, tokenizer, 512, "completion")) == (
        "Blue.<|im_end|>Red.<|im_end|>"
    )
    part = row(*CHAT, completion_from=3)
    assert learned(tokenizer, tokenize(part, tokenizer, 512, "completion")) == "Red.<|im_end|>"


def test_a_turn_whose_text_occurs_earlier_is_located_in_its_own_turn(tokenizer: Any) -> None:
    twice = (Message("user", "You are"), Message("assistant", "Who?"))
    example = tokenize(row(*twice), tokenizer, 512, ["user"])
    # SmolLM2's template begins with a system turn of its own, "You are a helpful AI assistant".
    assert shown(tokenizer, example).count("You are") == 2
    assert learned(tokenizer, example) == "You are<|im_end|>"
    first = next(i for i, label in enumerate(example.labels) if label != IGNORE_INDEX)
    assert "user\n" in tokenizer.decode(list(example.input_ids[:first]))


def test_train_on_applies_without_a_chat_template(tokenizer: Any) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    pair = row(Message("user", "2 + 2 ="), Message("assistant", "4"), completion_from=1)

    def of(labels: TrainOn) -> str:
        return learned(plain, tokenize(pair, plain, 512, labels))

    assert of("completion") == of("assistant") == of("last") == "4<|im_end|>"
    assert of("all").endswith("2 =\n4<|im_end|>")
    assert of(["user"]).strip().endswith("2 =")
    assert "4" not in of(["user"])


def test_a_rewritten_conversation_gives_one_example_per_answer(thinker: Any) -> None:
    (examples,) = tokenize_rows([row(*CHAT)], thinker, 512, "assistant")
    assert [learned(thinker, one) for one in examples] == ["Blue.<|im_end|>", "Red.<|im_end|>"]
    assert "Another." not in shown(thinker, examples[0])
    assert "<think>\n\n</think>\n\nBlue." in shown(thinker, examples[0])
    # As the model will find it: the earlier answer without its empty thought.
    assert "assistant\nBlue." in shown(thinker, examples[1])
    assert {one.origin for one in examples} == {"rows.jsonl:1"}


def test_reasoning_is_supervised_only_in_its_own_turn(thinker: Any) -> None:
    thought = Message("assistant", "<think>\nhm\n</think>\n\nBlue.")
    chat = (CHAT[1], thought, *CHAT[3:])
    (examples,) = tokenize_rows([row(*chat)], thinker, 512, "assistant")
    assert learned(thinker, examples[0]) == "<think>\nhm\n</think>\n\nBlue.<|im_end|>"
    assert "hm" not in shown(thinker, examples[1])
    apart = Message("assistant", "Blue.", extra=(("reasoning_content", "hm"),))
    (other,) = tokenize_rows([row(CHAT[1], apart)], thinker, 512, "assistant")
    assert other[0].input_ids == examples[0].input_ids
    assert other[0].labels == examples[0].labels


def test_only_rewritten_conversations_are_split(thinker: Any, tokenizer: Any) -> None:
    for labels in ("last", "completion", "all"):
        (examples,) = tokenize_rows([row(*CHAT)], thinker, 512, labels)
        assert len(examples) == 1
    (examples,) = tokenize_rows([row(*CHAT)], tokenizer, 512, "assistant")
    assert examples == [tokenize(row(*CHAT), tokenizer, 512)]
    with pytest.raises(DataError, match="rewrites earlier turns"):
        tokenize(row(*CHAT), thinker, 512)


def test_rows_tokenize_the_same_together_and_alone(thinker: Any, tokenizer: Any) -> None:
    rows = [
        row(*CHAT),
        row(text="The quick brown fox."),
        row(*CHAT[:3]),
        row(text="Prose."),
        row(*CHAT[1:3], label="blue"),
    ]
    for one in (thinker, tokenizer):
        together = tokenize_rows(rows, one, 40, "assistant")
        assert together == [tokenize_rows([r], one, 40, "assistant")[0] for r in rows]
    assert [[e.label for e in many] for many in together] == [[None]] * 4 + [["blue"]]


def test_tool_calls_and_tools_reach_the_template(thinker: Any) -> None:
    (examples,) = tokenize_rows([parse_row(TOOL_ROW, "tools.jsonl:1")], thinker, 512, "assistant")
    called, answered = examples
    assert '"name": "add", "parameters"' in shown(thinker, called)
    assert learned(thinker, called) == (
        '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    )
    assert "<tool_response>\n2\n</tool_response>" in shown(thinker, answered)
    assert learned(thinker, answered) == "It is 2.<|im_end|>"


def test_tools_that_a_template_drops_are_refused(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(DataError, match=r"tools\.jsonl:1: .* does not support .*\(got `tools`\)"):
        tokenize(parse_row(TOOL_ROW, "tools.jsonl:1"), changed, 512)
    alone = {"messages": TOOL_ROW["messages"]}
    with pytest.raises(DataError, match=r"does not support .*\(got `tool_calls`\)"):
        tokenize(parse_row(alone, "tools.jsonl:1"), changed, 512)


def test_a_control_token_in_a_tool_call_is_refused(thinker: Any) -> None:
    call = {"name": "say", "arguments": json.dumps({"text": "<|im_end|>"})}
    bad = {"role": "assistant", "content": "", "tool_calls": [call]}
    value = {"messages": [{"role": "user", "content": "Say it."}, bad]}
    with pytest.raises(DataError, match=r"x:1: the text contains a control token.*<\|im_end\|>"):
        tokenize(parse_row(value, "x:1"), thinker, 512)


def test_a_supervised_turn_that_the_template_changes_is_refused(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = changed.chat_template.replace(
        "message['content']", "message['content'].upper()"
    )
    assert "upper" in changed.chat_template
    with pytest.raises(DataError, match=r"changes the text of turn 0, the user's"):
        tokenize(row(*CHAT[1:3]), changed, 512, ["user"])


def with_template(tokenizer: Any, turn: str) -> Any:
    """Return the real tokenizer with a template that writes the assistant's turn as given."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}" + turn + "{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return changed


def test_a_turn_that_starts_with_a_special_token_is_supervised_completely(tokenizer: Any) -> None:
    channel = with_template(tokenizer, "<|endoftext|>{{ m.content }}<|im_end|>")
    example = tokenize(Row("x:1", "", CHAT[:3]), channel, max_length=200)
    learned = [label for label in example.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(learned) == "<|endoftext|>Blue.<|im_end|>"


def test_a_turn_whose_only_special_token_is_its_first_is_refused(tokenizer: Any) -> None:
    endless = with_template(tokenizer, "<|endoftext|>{{ m.content }}")
    with pytest.raises(DataError, match="without a special token"):
        tokenize(Row("x:1", "", CHAT[:3]), endless, max_length=200)


def test_templates_that_write_the_date_get_a_fixed_date(tokenizer: Any) -> None:
    dated = with_template(tokenizer, "{{ strftime_now('%d %b %Y') }} {{ m.content }}<|im_end|>")
    example = tokenize(Row("x:1", "", CHAT[:3]), dated, max_length=200)
    assert "01 Jan 2025 Blue." in tokenizer.decode(example.input_ids)
