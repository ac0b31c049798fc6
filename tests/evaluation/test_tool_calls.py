"""Tool calls: requests that their functions can serve, each with a right response."""

from collections import Counter
from typing import Any

import jsonschema
import pytest

from lora_kit.evaluation.items import tool_calls
from lora_kit.evaluation.items.instructions import InstructionRow
from lora_kit.evaluation.items.tool_calls import ToolRequest
from lora_kit.metrics.instruction_checks import follows_instructions

FUNCTIONS = tool_calls.functions()
REQUESTS = tool_calls.tool_requests()
ROWS = tool_calls.tool_call_rows()
WRONG = (
    "",
    "I'm sorry, but I can't help with that.",
    "the the the the the the",
    '{"name": "no_such_function", "arguments": {}}',
    "<tool_call>{</tool_call>",
)

each = pytest.mark.parametrize(
    ("request_", "row"), list(zip(REQUESTS, ROWS, strict=True)), ids=[row.id for row in ROWS]
)


def test_there_are_enough_requests_of_every_case() -> None:
    assert len(REQUESTS) >= 100
    cases = Counter(request.case for request in REQUESTS)
    assert min(cases.values()) >= 10
    subsets = Counter(row.subset for row in ROWS)
    assert subsets["no-call"] >= 25
    assert subsets["calls"] >= 75


def test_there_are_many_functions_and_each_is_called() -> None:
    assert len(FUNCTIONS) >= 25
    assert len({function.domain for function in FUNCTIONS.values()}) >= 15
    assert {call["name"] for request in REQUESTS for call in request.calls} == set(FUNCTIONS)


def test_ids_and_prompts_are_unique() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert len({row.prompt for row in ROWS}) == len(ROWS)


def test_the_right_function_has_no_fixed_place() -> None:
    places = Counter(
        request.functions.index(request.calls[0]["name"])
        for request in REQUESTS
        if len(request.calls) == 1
    )
    assert set(places) == {0, 1, 2}
    assert max(places.values()) < 0.5 * places.total()


@each
def test_the_example_passes_and_other_responses_fail(
    request_: ToolRequest, row: InstructionRow
) -> None:
    assert follows_instructions(request_.example, row.checks)
    for response in (*WRONG, row.prompt):
        assert not follows_instructions(response, row.checks), response


@each
def test_the_example_of_the_next_request_fails(request_: ToolRequest, row: InstructionRow) -> None:
    other = REQUESTS[(REQUESTS.index(request_) + 1) % len(REQUESTS)]
    assert not follows_instructions(other.example, row.checks)


@each
def test_expected_arguments_fit_the_function(request_: ToolRequest, row: InstructionRow) -> None:
    assert 2 <= len(set(request_.functions)) == len(request_.functions) <= 3
    for call in request_.calls:
        parameters = FUNCTIONS[call["name"]].tool["function"]["parameters"]
        closed = {**parameters, "additionalProperties": False}
        for arguments in alternatives({**call["arguments"], **call.get("defaults", {})}):
            jsonschema.validate(arguments, closed)
        assert set(parameters["required"]) <= set(call["arguments"])
        for name, value in call.get("defaults", {}).items():
            assert parameters["properties"][name]["default"] == value


def alternatives(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments with each value that is right for one of them."""
    lists = {
        name: value["any_of"] if isinstance(value, dict) and "any_of" in value else [value]
        for name, value in arguments.items()
    }
    first = {name: values[0] for name, values in lists.items()}
    return [{**first, name: value} for name, values in lists.items() for value in values]


@each
def test_words_to_look_for_are_not_in_the_request(
    request_: ToolRequest, row: InstructionRow
) -> None:
    assert bool(request_.about) != bool(request_.calls)
    assert not follows_instructions(request_.prompt, row.checks)
