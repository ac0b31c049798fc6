"""Expected calls of functions, and their comparison with the calls of a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_kit.metrics.json_values import is_json_value, json_equal
from lora_kit.metrics.response_text import has_word
from lora_kit.metrics.tool_calls import ToolCall, read_calls

NO_CALLS = "none"
FORM = "{name: FUNCTION, arguments: {ARGUMENT: VALUE}}"


def calls(response: str, expected: str | Sequence[Mapping[str, Any]]) -> bool:
    """Check that the response calls exactly the expected functions, in any order.

    Arguments are equal as JSON values: 1 equals 1.0, texts are compared without white space around
    them. An expected value `{any_of: [...]}` is one of several. Further arguments are wrong, and
    none may be missing but those in `defaults` of the expected call, which may be left out.
    With `none`, the response has to be an answer in words, without a call or an attempt at one.
    """
    read = read_calls(response)
    if isinstance(expected, str):
        return not read.attempted and has_word(read.text)
    return not read.malformed and _match(expected, read.calls)


def check_calls(value: object) -> str | tuple[Mapping[str, Any], ...]:
    """Return expected calls as a tuple, or `none`.

    Raises:
        ValueError: if a call has another form.
    """
    if value == NO_CALLS:
        return NO_CALLS
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list | tuple) or not listed:
        raise ValueError(
            f"expected a call, a list of calls, or none (got {value!r:.80}). Fix: write {FORM}"
        )
    for call in listed:
        _check_call(call)
    return tuple(listed)


def _check_call(call: object) -> None:
    if (
        not isinstance(call, Mapping)
        or not {"name", "arguments"} <= call.keys() <= {"name", "arguments", "defaults"}
        or not (isinstance(call["name"], str) and call["name"].strip())
    ):
        raise ValueError(
            f"a call has name, arguments and perhaps defaults (got {call!r:.80}). Fix: write {FORM}"
        )
    for field in ("arguments", "defaults"):
        values = call.get(field, {})
        if not isinstance(values, Mapping) or not is_json_value(values):
            raise ValueError(
                f"{call['name']}.{field}: expected JSON values by argument (got "
                f"{values!r:.80}). Fix: write a mapping, and quote dates"
            )
        for name, one in values.items():
            if _is_choice(one) and not (isinstance(one["any_of"], list) and one["any_of"]):
                raise ValueError(
                    f"{call['name']}.{field}.{name}: any_of takes a list of values (got "
                    f"{one['any_of']!r:.80}). Fix: list the acceptable values"
                )
    both = sorted(set(call["arguments"]) & set(call.get("defaults", {})))
    if both:
        raise ValueError(
            f"{call['name']}: an argument is either required or may be left out (got {both} "
            "in arguments and defaults). Fix: remove it from one"
        )


def _match(expected: Sequence[Mapping[str, Any]], found: Sequence[ToolCall]) -> bool:
    """Return true if the expected and the found calls can be paired, with none left."""
    if not expected:
        return not found
    return any(
        _is_call(expected[0], call) and _match(expected[1:], [*found[:at], *found[at + 1 :]])
        for at, call in enumerate(found)
    )


def _is_call(expected: Mapping[str, Any], call: ToolCall) -> bool:
    required, optional = expected["arguments"], expected.get("defaults", {})
    return (
        expected["name"].strip() == call.name
        and required.keys() <= call.arguments.keys() <= {*required, *optional}
        and all(
            _is_value(required[name] if name in required else optional[name], value)
            for name, value in call.arguments.items()
        )
    )


def _is_choice(expected: object) -> bool:
    return isinstance(expected, Mapping) and expected.keys() == {"any_of"}


def _is_value(expected: Any, value: Any) -> bool:
    if _is_choice(expected):
        return any(json_equal(one, value) for one in expected["any_of"])
    return json_equal(expected, value)
