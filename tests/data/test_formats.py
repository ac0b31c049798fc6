"""Row formats: detection by columns, parsing into the same rows, and errors with their origin."""

from typing import Any

import pytest

from lora_kit.data.formats import FORMATS, ON_REQUEST, check_columns, detect_format, parse_row
from lora_kit.data.rows import Message, Row
from lora_kit.recipe.data import RowFormat
from lora_kit.runtime.errors import DataError

ASK, ANSWER = Message("user", "Why?"), Message("assistant", "So.")
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SAID = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ({"messages": TURNS}, "messages"),
        ({"messages": TURNS, "prompt": "Why?", "chosen": 1, "rejected": 2}, "messages"),
        ({"prompt": "Why?", "completion": "So."}, "prompt-completion"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt-completion"),
        ({"prompt": TURNS[:1], "completion": "So."}, "prompt-completion"),
        ({"conversations": SAID}, "sharegpt"),
        ({"conversations": TURNS, "system": None}, "sharegpt"),
        ({"instruction": "Why?", "input": "", "output": "So.", "text": "Below is"}, "alpaca"),
        ({"instruction": "Why?", "input": None, "output": "So."}, "alpaca"),
        ({"text": "Why?", "label": "So."}, "text-label"),
    ],
)
def test_the_same_row_is_read_from_each_format(value: dict[str, Any], form: str) -> None:
    row = parse_row({"id": 7, **value}, "f:1")
    assert row.messages == (ASK, ANSWER)
    assert row.format == form
    assert (row.origin, row.cluster, row.text) == ("f:1", "f:1", None)
    assert row.completion_from == (None if form in ("messages", "sharegpt") else 1)
    assert row.label == ("So." if form == "text-label" else None)


def test_a_text_row_has_no_messages() -> None:
    assert parse_row({"text": "prose", "url": "x"}, "f:1") == Row(
        "f:1", "f:1", text="prose", format="text", unused=("url",)
    )
    labelled = {"text": "prose", "label": 3}
    assert parse_row(labelled, "f:1", "text").text == "prose"


def test_fields_of_alpaca_and_sharegpt_are_combined() -> None:
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "You add."}
    row = parse_row(alpaca, "f:1")
    assert row.messages == (
        Message("system", "You add."),
        Message("user", "Add.\n\n1 2"),
        Message("assistant", "3"),
    )
    assert row.completion_from == 2
    said = [
        {"from": "system", "value": "Short."},
        *SAID,
        {"from": "function_response", "value": ""},
    ]
    row = parse_row({"conversations": [*said, SAID[1]]}, "f:1")
    assert [m.role for m in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    row = parse_row({"conversations": SAID, "system": "Short."}, "f:1")
    assert row.messages[0] == Message("system", "Short.")


def test_a_prompt_repeated_in_the_completion_is_removed() -> None:
    row = parse_row({"prompt": TURNS[:1], "completion": TURNS}, "f:1")
    assert row.messages == (ASK, ANSWER)
    value = {"prompt": "Why?", "chosen": TURNS, "rejected": TURNS}
    row = parse_row(value, "f:1", "prompt-completion", {"completion": "chosen"})
    assert row.messages == (ASK, ANSWER)
    assert row.completion_from == 1


def test_a_completion_of_several_turns_starts_after_the_prompt() -> None:
    value = {
        "prompt": [{"role": "system", "content": "S"}, *TURNS[:1]],
        "completion": TURNS[1:] * 1,
    }
    assert parse_row(value, "f:1").completion_from == 2
    with pytest.raises(
        DataError, match=r"f:1: the last turn must be the assistant's \(got the user's\)"
    ):
        parse_row({"prompt": "Why?", "completion": [*TURNS[1:], TURNS[0]]}, "f:1")


TALK = {"messages": [*TURNS, TURNS[0]]}


@pytest.mark.parametrize(
    "value",
    [
        TALK,
        {"conversations": [*SAID, SAID[0]]},
        {"prompt": "Why?", "completion": [*TURNS[1:], TURNS[0]]},
    ],
)
def test_the_last_turn_may_have_any_role_with_train_on_all(value: dict[str, Any]) -> None:
    assert parse_row(value, "f:1", train_on_all=True).messages == (ASK, ANSWER, ASK)
    hint = r"f:1: the last turn must be .* \(got the user's\).*data\.train_on: all"
    with pytest.raises(DataError, match=hint):
        parse_row(value, "f:1")


def test_a_conversation_without_an_assistant_turn_is_refused_with_train_on_all() -> None:
    with pytest.raises(DataError, match="f:1: a conversation needs an assistant turn"):
        parse_row({"messages": TURNS[:1] * 2}, "f:1", train_on_all=True)


def test_class_indices_become_names_and_plain_numbers_become_text() -> None:
    value = {"text": "fine", "label": 1}
    assert parse_row(value, "f:1", names={"label": ["bad", "good"]}).label == "good"
    assert parse_row(value, "f:1").messages[1].content == "1"
    assert parse_row({"text": "?", "label": True}, "f:1").label == "true"
    with pytest.raises(
        DataError, match=r"f:1: `label` must be a class index from 0 to 1 \(got -1\)"
    ):
        parse_row({"text": "fine", "label": -1}, "f:1", names={"label": ["bad", "good"]})
    with pytest.raises(DataError, match="f:1: `label` must be a non-empty text"):
        parse_row({"text": "fine", "label": 0.5}, "f:1")


def test_columns_map_fields_to_column_names() -> None:
    value = {"question": "Why?", "reply": "So.", "text": "other"}
    columns = {"prompt": "question", "completion": "reply"}
    for form in ("auto", "prompt-completion"):
        assert parse_row(value, "f:1", form, columns).messages == (ASK, ANSWER)
    # The format that was meant, though another would come first.
    both = {"messages": TURNS * 2, **value}
    assert parse_row(both, "f:1", "auto", columns).messages == (ASK, ANSWER)
    # The column that was meant, though another has the field's name.
    assert parse_row({"text": "a", "body": "b"}, "f:1", "text", {"text": "body"}).text == "b"


@pytest.mark.parametrize(
    ("form", "columns", "value", "part"),
    [
        ("auto", {"prompt": "questoin"}, {"question": "?"}, "Did you mean `question`?"),
        ("auto", {"prompt": "a"}, {"question": "?"}, "no column 'a', which columns.prompt names"),
        ("alpaca", {}, {"instruction": "a", "outptu": "b"}, "no column 'output' (got"),
        ("text", {}, {"body": "b"}, "format text: no column 'text'"),
        ("auto", {}, {"body": "b"}, "no known format (got the keys body)"),
        ("auto", {}, {}, "no known format (got the keys none)"),
    ],
)
def test_a_missing_column_is_refused_with_the_most_similar_name(
    form: RowFormat, columns: dict[str, str], value: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError, match=r"^f:1: ") as caught:
        parse_row(value, "f:1", form, columns)
    assert part in str(caught.value)


def test_an_unknown_field_is_refused_with_the_most_similar_name() -> None:
    with pytest.raises(DataError, match=r"promt is no field of any format. Did you mean `prompt`"):
        check_columns({"promt": "x"}, "auto", "data.train.0")
    with pytest.raises(DataError, match=r"data\.train\.0: prompt is no field of format text"):
        check_columns({"prompt": "x"}, "text", "data.train.0")
    check_columns({"input": "x"}, "alpaca", "data.train.0")


@pytest.mark.parametrize("form", ["auto", "preference"])
def test_preference_pairs_are_refused_with_the_alternatives(form: RowFormat) -> None:
    value = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    assert detect_format(value, {}) == "preference"
    with pytest.raises(DataError, match=r"columns: \{completion: chosen\}"):
        parse_row(value, "f:1", form)
    row = parse_row(value, "f:1", "prompt-completion", {"completion": "chosen"})
    assert row.messages == (ASK, ANSWER)


@pytest.mark.parametrize(
    ("turn", "part"),
    [
        ({"role": "assistant"}, "messages[1]: a turn must have `role` and `content`"),
        ({"role": "assistant", "content": ""}, "`content` must be a non-empty text"),
        ({"role": "assistant", "content": 4}, "(got 4)"),
        (
            {"role": "bot", "content": "x"},
            "(got 'bot'). Fix: use one of system, user, assistant, tool",
        ),
        (
            {"role": "assistant", "content": "x", "weight": 0.5},
            "trained on or not, nothing between (got weight: 0.5)",
        ),
        ({"role": "assistant", "content": [{"type": "image"}]}, "may have only text parts"),
        ({"role": "assistant", "content": "", "tool_calls": ["x"]}, "tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]},
            "arguments: not valid JSON",
        ),
        ({"role": "user", "tool_calls": [{"name": "f"}]}, "only the assistant can have tool_calls"),
        ({"role": "assistant", "content": "", "tool_calls": []}, "non-empty"),
    ],
)
def test_a_malformed_turn_is_named(turn: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=r"^f:1: ") as caught:
        parse_row({"messages": [TURNS[0], turn]}, "f:1")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            "unknown `from` (got 'alien'). Fix: use one of system",
        ),
        ({"conversations": [{"from": "human"}]}, "a turn must have `from` and `value`"),
        ({"conversations": SAID[:1]}, "must be the assistant's (got the user's)"),
        ({"conversations": "x"}, "`conversations` must be a non-empty list of turns"),
        ({"instruction": " ", "output": "b"}, "`instruction` must be a non-empty text"),
        ({"instruction": "a", "output": ""}, "`output` must be a non-empty text"),
        ({"prompt": "a", "completion": None}, "`completion` must be a non-empty text"),
        ({"text": None, "label": "x"}, "`text` must be a non-empty text"),
        ({"messages": TURNS, "tools": "{"}, "tools: not valid JSON"),
        ({"messages": TURNS, "tools": [1]}, "`tools` must be a list of JSON schemas"),
        ([1], "a row must be an object (got list)"),
    ],
)
def test_a_malformed_field_is_named(value: Any, part: str) -> None:
    with pytest.raises(DataError, match=r"^f:1: ") as caught:
        parse_row(value, "f:1")
    assert part in str(caught.value)


def test_variants_of_turns_are_normalized() -> None:
    turns = [
        {"role": "developer", "content": "Short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}],
        },
        {"role": "assistant", "tool_calls": [{"id": "1", "name": "f", "arguments": '{"a": 1}'}]},
        {"role": "tool", "content": "", "name": "f", "tool_call_id": "1"},
        {"role": "assistant", "content": "So.", "reasoning_content": "hm", "refusal": None},
    ]
    row = parse_row({"messages": turns, "tools": '[{"name": "f"}]'}, "f:1")
    assert row.messages[0] == Message("system", "Short.")
    assert row.messages[1] == ASK
    assert row.messages[2].content == ""
    (call,) = row.messages[2].tool_calls
    assert call == {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}
    assert dict(row.messages[3].extra) == {"name": "f", "tool_call_id": "1"}
    assert dict(row.messages[4].extra) == {"reasoning_content": "hm"}
    assert row.tools == ({"name": "f"},)


def test_example_rows_of_formats_have_that_format() -> None:
    import ast

    for name, form in FORMATS.items():
        value = ast.literal_eval(form.example)
        assert detect_format(value, {}, (name,) if name in ON_REQUEST else ()) == name


def test_a_preference_pair_has_its_prompt_once_in_every_layout() -> None:
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    worse = [said[0], {"role": "assistant", "content": "No."}]
    for value in (
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "chosen": said, "rejected": worse, "messages": said},
        {"chosen": said, "rejected": worse},
    ):
        row = parse_row(value, "f:1", needed=("preference",))
        assert row.messages == (ASK, ANSWER)
        assert row.rejected == (Message("assistant", "No."),)
        assert row.completion_from == 1


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, "are the same"),
        ({"chosen": "So.", "rejected": "No."}, "share no prompt"),
        (
            {"prompt": "Why?", "chosen": "So.", "rejected": [{"role": "user", "content": "x"}]},
            "`rejected` must be one assistant turn",
        ),
        ({"prompt": "Why?", "completion": "So."}, "need preference pairs"),
    ],
)
def test_malformed_preference_pairs_are_refused(value: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_row(value, "f:1", needed=("preference",))
    assert part in str(caught.value)
    assert "f:1" in str(caught.value)


@pytest.mark.parametrize(
    ("label", "said"), [(True, True), (False, False), ("true", True), ("joy", None), (3, None)]
)
def test_only_boolean_labels_set_desirable(label: object, said: bool | None) -> None:
    row = parse_row({"prompt": "Why?", "completion": "So.", "label": label}, "f:1")
    assert row.desirable is said
