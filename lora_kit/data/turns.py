"""Parsing of conversation turns into messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from lora_kit.data.rows import Message
from lora_kit.data.strict_json import STRICT
from lora_kit.recipe.data import TurnRole
from lora_kit.runtime.errors import DataError

ROLES: tuple[str, ...] = get_args(TurnRole)
# OpenAI's name for system turns since 2024; chat templates know the older name.
ROLE_ALIASES = {"developer": "system"}
# Role names in data sets of the ShareGPT format.
SHAREGPT_ROLES = {
    **{role: role for role in ROLES},
    **ROLE_ALIASES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
# Switches by which other tools keep a turn out of training, with the value that keeps it in.
SWITCHES = {"loss": True, "train": True, "weight": True, "masked": False}


def read_text(value: object, field: str, origin: str) -> str:
    """Return a value that must be a non-blank string.

    Raises:
        DataError: if the value is not a string, or is blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{origin}: `{field}` must be a non-empty text (got {value!r}). Fix: fill it in, or "
            "remove the row"
        )
    return value


def read_messages(value: object, field: str, origin: str) -> tuple[Message, ...]:
    """Parse a list of turns with `role` and `content`.

    Raises:
        DataError: if a turn is malformed; the message names the turn.
    """
    turns = _turns(value, field, origin)
    return tuple(_message(turn, f"{origin}: {field}[{index}]") for index, turn in enumerate(turns))


def read_conversations(value: object, field: str, origin: str) -> tuple[Message, ...]:
    """Parse a list of turns in the ShareGPT format, with `from` and `value`.

    Raises:
        DataError: if a turn is malformed; the message names the turn.
    """
    messages = []
    for index, turn in enumerate(_turns(value, field, origin)):
        place = f"{origin}: {field}[{index}]"
        if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
            if isinstance(turn, Mapping) and "role" in turn:
                messages.append(_message(turn, place))
                continue
            raise DataError(
                f"{place}: a turn must have `from` and `value` (got {turn!r:.60}). Fix: add them"
            )
        speaker = turn["from"]
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise DataError(
                f"{place}: unknown `from` (got {speaker!r}). Fix: use one of "
                f"{', '.join(SHAREGPT_ROLES)}"
            )
        renamed = {k: v for k, v in turn.items() if k not in ("from", "value")}
        _refuse_two_names(turn, place)
        message = {**renamed, "role": SHAREGPT_ROLES[speaker], "content": turn["value"]}
        messages.append(_message(message, place))
    return tuple(messages)


def _refuse_two_names(turn: Mapping[str, Any], place: str) -> None:
    """Refuse a turn whose speaker or text stands under two names with different values."""
    role = SHAREGPT_ROLES[turn["from"]]
    other = turn.get("role")
    if other is not None and SHAREGPT_ROLES.get(str(other)) != role:
        raise DataError(
            f"{place}: `from` and `role` differ (got {turn['from']!r} and {other!r}). Fix: remove "
            "one of them"
        )
    if turn.get("content") not in (None, turn["value"]):
        raise DataError(
            f"{place}: `value` and `content` differ (got {turn['value']!r:.40} and "
            f"{turn['content']!r:.40}). Fix: remove one of them"
        )


def check_last_turn(messages: Sequence[Message], origin: str) -> None:
    """Refuse a conversation that does not end with an assistant turn.

    Raises:
        DataError: if the last turn has another role.
    """
    if messages[-1].role != "assistant":
        raise DataError(
            f"{origin}: the last turn must be the assistant's (got the {messages[-1].role}'s). "
            "Fix: remove the turns after the last answer, or set data.train_on: all"
        )


def check_has_assistant_turn(messages: Sequence[Message], origin: str) -> None:
    """Refuse a fully supervised conversation without an assistant turn.

    Raises:
        DataError: if no turn has the role `assistant`.
    """
    if not any(message.role == "assistant" for message in messages):
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            f"{origin}: a conversation needs an assistant turn (got the turns {roles}). Fix: add "
            "the answer, or give a row that is no conversation as `text`"
        )


def read_tools(value: object, origin: str) -> tuple[Mapping[str, Any], ...]:
    """Parse the JSON schemas of a row's tools, given as objects or as JSON text.

    Raises:
        DataError: if the value is not a list of JSON objects.
    """
    if value is None or value == "":
        return ()
    value = _parsed(value, f"{origin}: tools")
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(
            f"{origin}: `tools` must be a list of JSON schemas (got {value!r:.60}). Fix: give a "
            "list of objects"
        )
    return tuple(value)


def _turns(value: object, field: str, origin: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{origin}: `{field}` must be a non-empty list of turns (got {value!r:.60}). Fix: give "
            "a list of objects, one per turn"
        )
    return value


def _message(turn: object, place: str) -> Message:
    is_call = isinstance(turn, Mapping) and turn.get("tool_calls")
    required = {"role"} if is_call else {"role", "content"}
    if not isinstance(turn, Mapping) or not required <= set(turn):
        raise DataError(
            f"{place}: a turn must have `role` and `content` (got {turn!r:.60}). Fix: add them"
        )
    role = ROLE_ALIASES.get(str(turn["role"]), turn["role"])
    if role not in ROLES:
        raise DataError(
            f"{place}: unknown role (got {turn['role']!r}). Fix: use one of {', '.join(ROLES)}"
        )
    if is_call and role != "assistant":
        raise DataError(
            f"{place}: only the assistant can have tool_calls (got role {role!r}). Fix: remove "
            "them, or set the role to assistant"
        )
    known = ("role", "content", "tool_calls", *SWITCHES)
    extra = {str(k): v for k, v in turn.items() if k not in known and v is not None}
    may_be_empty = bool(is_call) or role == "tool"
    return Message(
        role,
        _content(turn.get("content"), place, may_be_empty),
        _tool_calls(turn["tool_calls"], place) if is_call else (),
        tuple(sorted(extra.items())),
        _switch(turn, role, place),
    )


def _switch(turn: Mapping[str, Any], role: str, place: str) -> bool | None:
    """Read the switch by which a turn is kept in or out of training; `None` without one."""
    found: dict[str, bool] = {}
    for name, value in turn.items():
        # Every turn has the weight 1 in some data sets, also those that nobody trains on.
        is_default = name == "weight" and value == 1 and role != "assistant"
        if name not in SWITCHES or value is None or is_default:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(
                f"{place}: a turn is trained on or not, nothing between (got {name}: {value!r}). "
                "Fix: write true or false, 1 or 0"
            )
        found[name] = bool(value) is SWITCHES[name]
    if len(set(found.values())) > 1:
        raise DataError(
            f"{place}: the switches of a turn contradict one another (got "
            f"{', '.join(f'{name}: {turn[name]}' for name in found)}). Fix: keep one of them"
        )
    return next(iter(found.values()), None)


def _content(value: object, place: str, may_be_empty: bool) -> str:
    if isinstance(value, list) and value:
        # Content parts in OpenAI's format; parts of other types would not reach the model.
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in value]
        if kinds != ["text"] * len(kinds):
            raise DataError(
                f"{place}: content may have only text parts (got {kinds!r:.60}). Fix: remove the "
                "others"
            )
        for number, part in enumerate(value):
            if not isinstance(part.get("text"), str):
                raise DataError(
                    f"{place}.content[{number}]: a text part must have a `text` (got "
                    f"{part!r:.60}). Fix: fill it in, or remove the part"
                )
            others = [str(k) for k, v in part.items() if k not in ("type", "text") and v]
            if others:
                raise DataError(
                    f"{place}.content[{number}]: a text part may hold a `text` only (got "
                    f"{', '.join(others)}). Fix: remove the other fields"
                )
        value = "".join(part["text"] for part in value)
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
                f"{place}: tool_calls[{number}]: malformed tool call (got {call!r:.60}). Fix: "
                'write {"function": {"name": "...", "arguments": {...}}}'
            )
        where = f"{place}: tool_calls[{number}]"
        _refuse_other_fields(call, function, where)
        arguments = _arguments(function.get("arguments"), where)
        rest = {k: v for k, v in call.items() if k not in ("function", "name", "arguments")}
        named = {"name": function["name"], "arguments": arguments}
        calls.append({"type": "function", **rest, "function": named})
    return tuple(calls)


def _refuse_other_fields(call: Mapping[str, Any], function: Mapping[str, Any], where: str) -> None:
    """Refuse fields of a call that no model would read, such as arguments by another name."""
    of_function, of_call = {"name", "arguments"}, {"id", "type", "index", "function"}
    names = set(call) - of_call - (of_function if function is call else set())
    values = {name: call[name] for name in call if name in names}
    if function is not call:
        values |= {name: value for name, value in function.items() if name not in of_function}
    others = [str(name) for name, value in values.items() if value is not None]
    if others:
        raise DataError(
            f"{where}: a call has a name and `arguments` (got {', '.join(others)}, which no model "
            'would read). Fix: write {"function": {"name": "...", "arguments": {...}}}'
        )


def _arguments(value: object, where: str) -> Mapping[str, Any]:
    """Read the arguments of a call.

    OpenAI writes them as JSON text, which templates would quote a second time.

    Raises:
        DataError: if they are no JSON object.
    """
    if value is None or value == "":
        return {}
    arguments = _parsed(value, f"{where}: arguments")
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{where}: arguments: must be an object by name (got {value!r:.60}). Fix: write "
            '{"name": value, ...}'
        )
    return arguments


def _parsed(value: object, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return STRICT.decode(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not valid JSON: {error} (got {value!r:.60}). Fix: correct it"
        ) from error
