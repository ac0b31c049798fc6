"""The turns of a conversation as data sets write them, read into messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_kit.data.rows import Message
from lora_kit.runtime.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
# OpenAI calls the system's turns so since 2024; templates know the older name.
SAME_ROLE = {"developer": "system"}
# What data sets in the form of ShareGPT call the speakers.
SPEAKERS = {
    **{role: role for role in ROLES},
    **SAME_ROLE,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_response": "tool",
    "observation": "tool",
}


def read_text(value: object, field: str, origin: str) -> str:
    """A text that says something.

    Raises:
        DataError: if it is none, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{origin}: `{field}` has to be a text that is not empty, found {value!r}")
    return value


def read_messages(value: object, field: str, origin: str) -> tuple[Message, ...]:
    """Read a list of turns with `role` and `content`.

    Raises:
        DataError: naming the turn that is wrong.
    """
    turns = _turns(value, field, origin)
    return tuple(_message(turn, f"{origin}: {field}[{index}]") for index, turn in enumerate(turns))


def read_conversations(value: object, field: str, origin: str) -> tuple[Message, ...]:
    """Read turns in the form of ShareGPT, with `from` and `value`.

    Raises:
        DataError: naming the turn that is wrong.
    """
    messages = []
    for index, turn in enumerate(_turns(value, field, origin)):
        place = f"{origin}: {field}[{index}]"
        if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
            if isinstance(turn, Mapping) and "role" in turn:
                messages.append(_message(turn, place))
                continue
            raise DataError(f"{place}: `from` and `value` are wanted, found {turn!r:.60}")
        speaker = turn["from"]
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise DataError(f"{place}: from {speaker!r}; possible: {', '.join(SPEAKERS)}")
        renamed = {k: v for k, v in turn.items() if k not in ("from", "value")}
        message = {**renamed, "role": SPEAKERS[speaker], "content": turn["value"]}
        messages.append(_message(message, place))
    return tuple(messages)


def check_last(messages: Sequence[Message], origin: str) -> None:
    """Refuse a conversation in which the assistant has not the last word.

    Raises:
        DataError: if another has it.
    """
    if messages[-1].role != "assistant":
        raise DataError(
            f"{origin}: the last turn is the {messages[-1].role}'s; it has to be the assistant's, "
            "whose words are what is learned (of a conversation that is learned whole, with "
            "data.train_on: all, it may be any)"
        )


def check_spoken(messages: Sequence[Message], origin: str) -> None:
    """Refuse a conversation that is learned whole and in which the assistant says nothing.

    Raises:
        DataError: if it does not.
    """
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            f"{origin}: no turn is the assistant's, so that nothing shows where its turns end; "
            "give what is no conversation as a `text`"
        )


def read_tools(value: object, origin: str) -> tuple[Mapping[str, Any], ...]:
    """The JSON schemas of a row's tools; data sets hold them as objects, or as text of them.

    Raises:
        DataError: if they are neither.
    """
    if value is None or value == "":
        return ()
    value = _parsed(value, f"{origin}: tools")
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"{origin}: `tools` has to be a list of JSON schemas, found {value!r:.60}")
    return tuple(value)


def _turns(value: object, field: str, origin: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: `{field}` has to be a list of turns, found {value!r:.60}")
    return value


def _message(turn: object, place: str) -> Message:
    is_call = isinstance(turn, Mapping) and turn.get("tool_calls")
    wanted = {"role"} if is_call else {"role", "content"}
    if not isinstance(turn, Mapping) or not wanted <= set(turn):
        raise DataError(f"{place}: `role` and `content` are wanted, found {turn!r:.60}")
    role = SAME_ROLE.get(str(turn["role"]), turn["role"])
    if role not in ROLES:
        raise DataError(f"{place}: role {turn['role']!r}; possible: {', '.join(ROLES)}")
    if role == "assistant" and turn.get("weight", 1) not in (None, 1):
        raise DataError(
            f"{place}: weight {turn['weight']!r}: turns are not weighted one by one; leave the "
            "weights out, or let data.train_on say which turns are learned"
        )
    if is_call and role != "assistant":
        raise DataError(f"{place}: only the assistant makes tool_calls, found role {role!r}")
    known = ("role", "content", "tool_calls", "weight")
    extra = {str(k): v for k, v in turn.items() if k not in known and v is not None}
    may_be_empty = bool(is_call) or role == "tool"
    return Message(
        role,
        _content(turn.get("content"), place, may_be_empty),
        _tool_calls(turn["tool_calls"], place) if is_call else (),
        tuple(sorted(extra.items())),
    )


def _content(value: object, place: str, may_be_empty: bool) -> str:
    if isinstance(value, list) and value:
        # OpenAI's parts; what is no text would not reach the model.
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in value]
        if kinds != ["text"] * len(kinds):
            raise DataError(f"{place}: content of parts {kinds!r:.60}; only parts of text are read")
        value = "".join(str(part.get("text")) for part in value)
    if may_be_empty and (value is None or value == ""):
        return ""
    return read_text(value, "content", place)


def _tool_calls(value: object, place: str) -> tuple[Mapping[str, Any], ...]:
    value = _parsed(value, f"{place}: tool_calls")
    calls = []
    for number, call in enumerate(value if isinstance(value, list) else [value]):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{place}: tool_calls[{number}]: "
                '{"function": {"name": "...", "arguments": {...}}} is wanted, '
                f"found {call!r:.60}"
            )
        # OpenAI writes the arguments as text, which templates would quote once more.
        arguments = _parsed(
            function.get("arguments") or {}, f"{place}: tool_calls[{number}]: arguments"
        )
        rest = {k: v for k, v in call.items() if k not in ("function", "name", "arguments")}
        named = {"name": function["name"], "arguments": arguments}
        calls.append({"type": "function", **rest, "function": named})
    return tuple(calls)


def _parsed(value: object, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON: {error}, found {value!r:.60}") from error
