"""Labels are exactly on the turns that are trained on and their ends, whatever the turns say."""

import random
from typing import Any

import pytest

from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.templates import control_tokens
from lora_kit.data.tokenization import tokenize_rows
from lora_kit.recipe.data import TrainOn
from lora_kit.runtime.errors import DataError
from tests.families import FAMILIES, family_tokenizer

# Texts that also occur in templates and inside of their control tokens, and texts of one character.
CONTENTS = (
    *("user", "assistant", "system", "model", "im", "start", "end", "im_end", "eot", "id", "INST"),
    *("s", "|", "<", ">", "/", "<|", "|>", "a", "e", "0", "1", "7", "12", ".", "\n.", " x ", "é"),
    *("think", "turn", "of", "header", "<think", "_", "ï", "日", "tool_response", "-", "'"),
)
ROLES: tuple[TrainOn, ...] = (
    *("assistant", "last"),
    *(["user"], ["user", "assistant"], ["assistant"]),
)


def learned(tokenizer: Any, example: Example) -> list[str]:
    """Return each run of supervised tokens as text."""
    runs: list[list[int]] = []
    inside = False
    for label in example.labels:
        if label == IGNORE_INDEX:
            inside = False
            continue
        if not inside:
            runs.append([])
        inside = True
        runs[-1].append(label)
    return [str(tokenizer.decode(run)) for run in runs]


def parts(tokenizer: Any, texts: list[str]) -> list[str]:
    """Split texts at control tokens, which are dropped, and trim what is between them."""
    control = control_tokens(tokenizer)
    assert control is not None
    return [part.strip() for text in texts for part in control.split(text) if part.strip()]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_short_words_of_the_template_are_learned_as_turns(
    tokenizer: Any, name: str, seed: int
) -> None:
    changed = family_tokenizer(tokenizer, name)
    draw = random.Random(f"{name}/{seed}")
    for train_on in ROLES:
        turns = [
            Message("user" if number % 2 == 0 else "assistant", draw.choice(CONTENTS))
            for number in range(draw.choice((2, 4, 6)))
        ]
        row = Row("rows.jsonl:1", "c", tuple(turns))
        (examples,) = tokenize_rows([row], changed, 512, train_on)
        got = [text for one in examples for text in learned(changed, one)]
        roles = ["assistant"] if isinstance(train_on, str) else train_on
        chosen = [m for m in turns if m.role in roles]
        chosen = chosen[-1:] if train_on == "last" else chosen
        expected = [message.content.strip() for message in chosen]
        if name == "qwen-3":
            got = [text.replace("<think>\n\n</think>\n\n", "") for text in got]
        assert parts(changed, got) == expected, (train_on, [m.content for m in turns], got)
        ends = sum(text.count(FAMILIES[name].end) for text in got)
        if roles == ["assistant"]:
            assert ends == len(chosen), got


# Gemma's template wants the user to begin.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma"])
def test_a_greeting_is_learned(tokenizer: Any, name: str) -> None:
    """ShareGPT rows often begin with a turn of the model."""
    turns = [
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "Who are you?"},
        {"from": "gpt", "value": "A model."},
    ]
    row = parse_row({"conversations": turns}, "rows.jsonl:1")
    changed = family_tokenizer(tokenizer, name)
    (examples,) = tokenize_rows([row], changed, 512, "assistant")
    got = parts(changed, [text for one in examples for text in learned(changed, one)])
    assert [text.removeprefix("<think>\n\n</think>\n\n") for text in got] == ["Hello.", "A model."]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("switch", [{"loss": False}, {"train": 0}, {"weight": 0}, {"masked": True}])
def test_a_switched_off_turn_is_not_learned(
    tokenizer: Any, name: str, switch: dict[str, Any]
) -> None:
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Wrong.", **switch},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Right."},
    ]
    row = parse_row({"messages": turns}, "rows.jsonl:1")
    changed = family_tokenizer(tokenizer, name)
    (examples,) = tokenize_rows([row], changed, 512, "assistant")
    got = " ".join(text for one in examples for text in learned(changed, one))
    assert "Right." in got
    assert "Wrong." not in got


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "42"},
        {"role": "system", "content": "Be short."},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Since."},
        {"role": "assistant", "content": "Yes.", "thinking": "Since."},
    ],
)
def test_every_text_of_a_row_is_written_or_refused(
    tokenizer: Any, name: str, turn: dict[str, Any]
) -> None:
    first = [turn] if turn["role"] == "system" else []
    question = {"role": "user", "content": "What is it?"}
    middle = [] if turn["role"] != "tool" else [{"role": "assistant", "content": "I look."}, turn]
    last = turn if turn["role"] == "assistant" else {"role": "assistant", "content": "Done."}
    row = parse_row({"messages": [*first, question, *middle, last]}, "rows.jsonl:1")
    changed = family_tokenizer(tokenizer, name)
    said = written_or_refused(row, changed)
    fields = [name for name in turn if name != "role"]
    is_written = all(turn[name] in said for name in fields)
    assert is_written or "rejects" in said or any(f"`{name}` of turn" in said for name in fields)
    assert "rows.jsonl:1" in said or "What is it?" in said


def written_or_refused(row: Row, tokenizer: Any) -> str:
    """Return the text of a row's examples, or the error that refuses the row."""
    try:
        (examples,) = tokenize_rows([row], tokenizer, 512, "assistant")
    except DataError as error:
        return str(error)
    return " ".join(str(tokenizer.decode(list(one.input_ids))) for one in examples)


@pytest.mark.parametrize("is_id_checked", [False, True])
def test_a_question_that_only_its_own_answer_follows_is_refused(
    tokenizer: Any, is_id_checked: bool
) -> None:
    """A template that keeps the last question alone would train on answers to nothing."""
    changed = family_tokenizer(tokenizer, "chatml")
    check = "{% if m.tool_call_id and m.tool_call_id | length != 2 %}{{ raise_exception('id') }}"
    changed.chat_template = (
        "{% for m in messages %}"
        + (check + "{% endif %}" if is_id_checked else "")
        + "{% if m.role != 'user' or loop.revindex <= 2 %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "Two?", "tool_call_id": "ab"},
        {"role": "assistant", "content": "2."},
    ]
    row = parse_row({"messages": turns}, "rows.jsonl:1")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*`content` of turn 0"):
        tokenize_rows([row], changed, 512, "last")
