"""Calls of functions in a response, in the forms that models write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_kit.metrics.json_values import STRICT_JSON
from lora_kit.metrics.response_text import without_reasoning

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
"""Calls of Hermes and Qwen, one a tag."""
MARKED = re.compile(r"(?:\[TOOL_CALLS\]|<\|python_tag\|>)(.*)", re.DOTALL)
"""Calls of Mistral and Llama 3: everything behind the marker, which is a special token."""
ATTEMPT = re.compile(
    r"</?tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|\"tool_calls\"\s*:"
    r"|\"name\"\s*:\s*\"[^\"]*\"\s*,\s*\"(?:arguments|parameters)\"\s*:"
)
"""Signs of a call, even of one that is no valid JSON."""
CODE_CALL = re.compile(r"\W*[A-Za-z_][\w.]*\([^()]*\)\W*")
"""Call as in Python, with nothing around it."""


@dataclass(frozen=True)
class ToolCall:
    """Function that a response calls, with its arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ReadCalls:
    """Calls of a response, in their order, and the text around them."""

    calls: tuple[ToolCall, ...]
    attempted: bool
    """True if there is a call, or something that was meant to be one."""
    malformed: bool
    """True if a part that is marked as a call cannot be read."""
    text: str
    """Response without reasoning and calls."""


def read_calls(response: str) -> ReadCalls:
    """Find the calls of a response, with or without prose around them.

    Forms: `<tool_call>{...}</tool_call>`, `[TOOL_CALLS] [...]`, `<|python_tag|>{...}`, and a bare
    object or list, in a code fence too. A call is `{"name": ..., "arguments": {...}}`, with
    `parameters` in place of `arguments`, with the arguments as JSON text, or as the `function` of
    an OpenAI call. Markers that are special tokens are missing from decoded text; then the bare
    form is read.
    """
    text = without_reasoning(response)
    parts = [match[1] for match in TAGGED.finditer(text)]
    rest = TAGGED.sub(" ", text)
    if not parts and (marked := MARKED.search(text)):
        parts, rest = [marked[1]], text[: marked.start()]
    if parts:
        found = [list(_calls_of_part(part)) for part in parts]
        calls = tuple(call for calls in found for call in calls)
        return ReadCalls(calls, True, not all(found), rest)
    bare, rest = _bare_calls(text)
    attempted = bool(bare or ATTEMPT.search(text) or CODE_CALL.fullmatch(text))
    return ReadCalls(tuple(bare), attempted, False, rest)


def _calls_of_part(part: str) -> Iterator[ToolCall]:
    """Yield the calls of a marked part: JSON values behind each other, perhaps separated by `;`."""
    rest = part.strip()
    found: list[ToolCall] = []
    while rest:
        value, end = _decode(rest)
        calls = _calls_of_value(value, is_marked=True)
        if end == 0 or calls is None:
            return  # one call that cannot be read spoils the part
        found += calls
        rest = rest[end:].strip("; \n\t")
    yield from found


def _bare_calls(text: str) -> tuple[list[ToolCall], str]:
    """Return the calls in a text without markers, and the text without its JSON values."""
    found: list[ToolCall] = []
    prose, at = [], 0
    while (opening := re.compile(r"[{\[]").search(text, at)) is not None:
        prose.append(text[at : opening.start()])
        value, end = _decode(text[opening.start() :])
        if end == 0:
            prose.append(opening[0])
        else:
            found += _calls_of_value(value, is_marked=False) or []
        at = opening.start() + max(end, 1)
    return found, "".join([*prose, text[at:]])


def _decode(text: str) -> tuple[Any, int]:
    """Return the JSON value at the start of a text and its length; length 0 for none."""
    try:
        return STRICT_JSON.raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0


def _calls_of_value(value: object, is_marked: bool) -> list[ToolCall] | None:
    """Return the calls of a JSON value; `None` if it is something else."""
    if isinstance(value, Mapping) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    values = value if isinstance(value, list) else [value]
    calls = [_call(one, is_marked) for one in values]
    read = [call for call in calls if call is not None]
    return read if read and len(read) == len(calls) else None


def _call(value: object, is_marked: bool) -> ToolCall | None:
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    given = [value[key] for key in ("arguments", "parameters") if key in value]
    if not given and not is_marked:
        return None  # an object with a name, such as a person
    arguments = given[0] if given else {}
    if isinstance(arguments, str):
        arguments, end = _decode(arguments.strip())
        end_of_text = end == len(str(given[0]).strip())
        if not end_of_text:
            return None
    if not isinstance(arguments, Mapping):
        return None
    return ToolCall(value["name"].strip(), arguments)
