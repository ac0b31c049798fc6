"""Expected calls: equality of arguments, defaults, order, and answers without a call."""

import json
from typing import Any

import pytest

from lora_kit.metrics.expected_calls import calls, check_calls


def response(*pairs: tuple[str, dict[str, Any]]) -> str:
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in pairs])


def passes(expected: object, *pairs: tuple[str, dict[str, Any]]) -> bool:
    return calls(response(*pairs), check_calls(expected))


BOOK = {
    "name": "book",
    "arguments": {"city": {"any_of": ["New York", "NYC"]}, "nights": 2},
    "defaults": {"guests": 1},
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "New York", "nights": 2},
        {"city": " NYC", "nights": 2.0, "guests": 1},
    ],
)
def test_right_arguments_pass(arguments: dict[str, Any]) -> None:
    assert passes(BOOK, ("book", arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "New York"},
        {"city": "new york", "nights": 2},
        {"city": "New York", "nights": "2"},
        {"city": "New York", "nights": 2, "guests": 2},
        {"city": "New York", "nights": 2, "pets": None},
        {"city": ["New York", "NYC"], "nights": 2},
        {},
    ],
)
def test_other_arguments_fail(arguments: dict[str, Any]) -> None:
    assert not passes(BOOK, ("book", arguments))


def test_another_function_and_more_calls_fail() -> None:
    arguments = {"city": "NYC", "nights": 2}
    assert not passes(BOOK, ("reserve", arguments))
    assert not passes(BOOK, ("book", arguments), ("book", arguments))
    assert not calls("I would book a room.", check_calls(BOOK))
    assert not calls(response(("book", arguments)) + "<tool_call>{</tool_call>", check_calls(BOOK))


def test_values_are_compared_as_json() -> None:
    expected = {"name": "f", "arguments": {"a": [1, {"b": None}], "c": True}}
    assert passes(expected, ("f", {"a": [1.0, {"b": None}], "c": True}))
    assert not passes(expected, ("f", {"a": [1, {"b": None}], "c": 1}))
    assert not passes(expected, ("f", {"a": [True, {"b": None}], "c": True}))
    assert not passes(expected, ("f", {"a": [1, {}], "c": True}))


def test_calls_may_come_in_any_order() -> None:
    one = {"name": "f", "arguments": {"a": {"any_of": [1, 2]}}}
    other = {"name": "f", "arguments": {"a": 1}}
    for expected in ([one, other], [other, one]):
        assert passes(expected, ("f", {"a": 1}), ("f", {"a": 2}))
        assert passes(expected, ("f", {"a": 2}), ("f", {"a": 1}))
        assert not passes(expected, ("f", {"a": 2}), ("f", {"a": 2}))
        assert not passes(expected, ("f", {"a": 1}))


@pytest.mark.parametrize(
    "text", ["Paris.", "<think>call add?</think>It is 3.", "Of the set {1} all."]
)
def test_an_answer_in_words_calls_nothing(text: str) -> None:
    assert calls(text, "none")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"answer": 3}',
        'It is <tool_call>{"name": "add"}</tool_call>',
        '{"name": "add", "arguments": {"a": 1',
        "Let me see. " + response(("add", {})),
        "<think>It is 3.",
    ],
)
def test_a_call_or_bare_json_is_no_answer_in_words(text: str) -> None:
    assert not calls(text, "none")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a call, a list of calls, or none"),
        ("add", "expected a call, a list of calls, or none"),
        ({"name": "add"}, "a call has name, arguments"),
        ({"name": "", "arguments": {}}, "a call has name, arguments"),
        ({"name": "add", "arguments": {}, "x": 1}, "a call has name, arguments"),
        ([{"name": "add", "arguments": []}], r"add\.arguments: expected JSON values"),
        ({"name": "add", "arguments": {"a": float("nan")}}, r"add\.arguments: expected JSON"),
        ({"name": "add", "arguments": {"a": {"any_of": []}}}, r"add\.arguments\.a: any_of takes"),
        (
            {"name": "add", "arguments": {"a": 1}, "defaults": {"a": 1}},
            "either required or may be left out",
        ),
    ],
)
def test_a_call_of_another_form_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_calls(value)
