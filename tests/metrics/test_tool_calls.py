"""Calls in a response: the forms that models write, and what is no call."""

import pytest

from lora_kit.metrics.tool_calls import ToolCall, read_calls

CALL = '{"name": "add", "arguments": {"a": 1, "b": [2]}}'
FORMS = {
    "bare": CALL,
    "list": f"[{CALL}]",
    "fence": f"```json\n{CALL}\n```",
    "prose": f"I will call a function.\n\n{CALL}\n\nPlease wait.",
    "parameters": CALL.replace("arguments", "parameters"),
    "arguments as text": '{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": [2]}"}',
    "openai": f'{{"type": "function", "function": {CALL}}}',
    "openai message": f'{{"tool_calls": [{{"id": "1", "type": "function", "function": {CALL}}}]}}',
    "hermes": f"<tool_call>\n{CALL}\n</tool_call>",
    "hermes without an end": f"<tool_call>{CALL}",
    "mistral": f"[TOOL_CALLS] [{CALL}]",
    "llama": f"<|python_tag|>{CALL}",
    "reasoning": f'<think>{{"name": "no", "arguments": {{}}}}</think>\n{CALL}',
    "reasoning without a start": f"Hm.</think>{CALL}",
    "braces before": "The set {1, 2} [sic] is small. " + CALL,
}
TWO = {
    "list": f"[{CALL}, {CALL}]",
    "lines": f"{CALL}\n{CALL}",
    "semicolon": f"<|python_tag|>{CALL}; {CALL}",
    "hermes": f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
    "hermes, ends left out": f"<tool_call>{CALL}\n<tool_call>{CALL}",
    "hermes list": f"<tool_call>[{CALL}, {CALL}]</tool_call>",
}
ADD = ToolCall("add", {"a": 1, "b": [2]})


@pytest.mark.parametrize("response", FORMS.values(), ids=FORMS)
def test_one_call_is_read(response: str) -> None:
    read = read_calls(response)
    assert read.calls == (ADD,)
    assert read.attempted
    assert not read.malformed


@pytest.mark.parametrize("response", TWO.values(), ids=TWO)
def test_two_calls_are_read(response: str) -> None:
    assert read_calls(response).calls == (ADD, ADD)


@pytest.mark.parametrize(
    "response",
    [
        "<tool_call>add</tool_call>",
        "<tool_call>{'name': 'add', 'arguments': {}}</tool_call>",
        f"<tool_call>{CALL[:-1]}</tool_call>",
        f"<tool_call>{CALL} and more</tool_call>",
        '[TOOL_CALLS] [{"name": "add", "arguments": [1]}]',
        f"<tool_call>{CALL}</tool_call><tool_call>{{</tool_call>",
    ],
)
def test_a_marked_call_that_cannot_be_read_is_malformed(response: str) -> None:
    assert read_calls(response).malformed


@pytest.mark.parametrize("response", [CALL[:-1], CALL[:-4], "add(a=1)", "`math.add(1, b=2)`"])
def test_an_attempt_is_noticed(response: str) -> None:
    read = read_calls(response)
    assert read.attempted
    assert not read.calls


@pytest.mark.parametrize(
    "response",
    [
        "It is 3.",
        '{"name": "Ada", "age": 3}',
        '[{"name": "Ada"}]',
        "Use print(1) for that (or not).",
        '{"name": "add", "arguments": "a"}',
        "[1, 2]",
        "{" * 3000,
    ],
    ids=lambda response: response[:20],
)
def test_other_text_has_no_calls(response: str) -> None:
    assert not read_calls(response).calls


def test_a_marked_call_may_have_no_arguments() -> None:
    assert read_calls('<tool_call>{"name": "now"}</tool_call>').calls == (ToolCall("now", {}),)
