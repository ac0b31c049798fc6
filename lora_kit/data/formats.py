"""The formats of a row: which one it is in, and how it is read.

A format is known by its fields. Where a row could be read in several, the first of `FORMATS` is
meant: data sets carry columns beside those that matter (Alpaca its `text`, UltraChat a `prompt`
beside its `messages`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_kit.data.rows import Message, Row
from lora_kit.data.turns import (
    check_last,
    check_spoken,
    read_conversations,
    read_messages,
    read_text,
    read_tools,
)
from lora_kit.recipe.data import RowFormat
from lora_kit.runtime.errors import DataError

Value = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How one kind of row is read.

    Attributes:
        fields: what it has to have.
        optional: what it may have.
        shown: a row of it, for messages.
        read: a row and its origin to what it says.
    """

    fields: tuple[str, ...]
    optional: tuple[str, ...]
    shown: str
    read: Callable[[Value, str], Row]


def _messages(value: Value, origin: str) -> Row:
    messages = read_messages(value["messages"], "messages", origin)
    return Row(origin, origin, messages, tools=read_tools(value.get("tools"), origin))


def _sharegpt(value: Value, origin: str) -> Row:
    messages = read_conversations(value["conversations"], "conversations", origin)
    messages = _system(value, origin) + messages
    return Row(origin, origin, messages, tools=read_tools(value.get("tools"), origin))


def _prompt_completion(value: Value, origin: str) -> Row:
    prompt = _spoken(value["prompt"], "prompt", "user", origin)
    completion = _spoken(value["completion"], "completion", "assistant", origin)
    if len(completion) > len(prompt) and completion[: len(prompt)] == prompt:
        # UltraFeedback and others repeat the prompt in what is chosen.
        completion = completion[len(prompt) :]
    return Row(
        origin,
        origin,
        prompt + completion,
        tools=read_tools(value.get("tools"), origin),
        completion_from=len(prompt),
        desirable=_said_to_be_good(value.get("label")),
    )


def _said_to_be_good(label: object) -> bool | None:
    """Data sets have other columns of this name, which say nothing of the kind."""
    if isinstance(label, bool):
        return label
    # A CSV file holds texts.
    return {"true": True, "false": False}.get(label.lower()) if isinstance(label, str) else None


def _alpaca(value: Value, origin: str) -> Row:
    asked = read_text(value["instruction"], "instruction", origin)
    given = value.get("input")
    if given is not None and str(given).strip():
        asked = f"{asked}\n\n{read_text(given, 'input', origin)}"
    answer = read_text(value["output"], "output", origin)
    messages = (*_system(value, origin), Message("user", asked), Message("assistant", answer))
    return Row(origin, origin, messages, completion_from=len(messages) - 1)


def _text_label(value: Value, origin: str) -> Row:
    label = value["label"]
    if isinstance(label, bool | int):
        label = json.dumps(label)
    label = read_text(label, "label", origin)
    asked = read_text(value["text"], "text", origin)
    messages = (Message("user", asked), Message("assistant", label))
    return Row(origin, origin, messages, completion_from=1, label=label)


def _text(value: Value, origin: str) -> Row:
    return Row(origin, origin, text=read_text(value["text"], "text", origin))


def _preference(value: Value, origin: str) -> Row:
    chosen = _spoken(value["chosen"], "chosen", "assistant", origin)
    rejected = _spoken(value["rejected"], "rejected", "assistant", origin)
    if "prompt" in value:
        prompt = _spoken(value["prompt"], "prompt", "user", origin)
    else:
        # Anthropic's and others give two conversations, which are one until they part.
        equal = [one == other for one, other in zip(chosen, rejected, strict=False)]
        prompt = chosen[: (*equal, False).index(False)]
    # UltraFeedback and others repeat the prompt in what is chosen.
    chosen, rejected = (
        said[len(prompt) :] if said[: len(prompt)] == prompt else said
        for said in (chosen, rejected)
    )
    for name, said in (("chosen", chosen), ("rejected", rejected)):
        if [message.role for message in said] != ["assistant"]:
            roles = ", ".join(message.role for message in said) or "(none)"
            raise DataError(
                f"{origin}: `{name}` has to be one turn of the assistant behind the prompt that "
                f"both share; found the turns {roles}"
            )
    if not prompt:
        raise DataError(f"{origin}: `chosen` and `rejected` share no prompt; give it as `prompt`")
    if chosen == rejected:
        raise DataError(f"{origin}: `chosen` and `rejected` are the same; nothing is preferred")
    return Row(
        origin, origin, prompt + chosen, completion_from=len(prompt), rejected=tuple(rejected)
    )


def _require_kind(form: RowFormat, pairs: bool, origin: str) -> None:
    if form == "preference" and not pairs:
        raise DataError(
            f"{origin}: a pair of preference, which the objectives dpo, orpo and reward learn "
            "from, and nothing else does. To learn what was chosen, write format: "
            "prompt-completion and columns: {completion: chosen}"
        )
    if pairs and form != "preference":
        raise DataError(
            f"{origin}: format {form}; the objectives dpo, orpo and reward learn from pairs: "
            f"{FORMATS['preference'].shown}"
        )


def _spoken(value: object, field: str, role: str, origin: str) -> tuple[Message, ...]:
    """A text as one turn, or TRL's conversational form: a list of turns."""
    if isinstance(value, list):
        return read_messages(value, field, origin)
    return (Message(role, read_text(value, field, origin)),)


def _system(value: Value, origin: str) -> tuple[Message, ...]:
    system = value.get("system")
    if system is None or system == "":
        return ()
    return (Message("system", read_text(system, "system", origin)),)


TURNS = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
FORMATS: dict[RowFormat, Format] = {
    "messages": Format(("messages",), ("tools",), f'{{"messages": {TURNS}}}', _messages),
    "prompt-completion": Format(
        ("prompt", "completion"),
        ("tools", "label"),
        '{"prompt": "...", "completion": "..."}',
        _prompt_completion,
    ),
    "preference": Format(
        ("chosen", "rejected"),
        ("prompt",),
        '{"prompt": "...", "chosen": "...", "rejected": "..."}',
        _preference,
    ),
    "sharegpt": Format(
        ("conversations",),
        ("system", "tools"),
        '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
        _sharegpt,
    ),
    "alpaca": Format(
        ("instruction", "output"),
        ("input", "system"),
        '{"instruction": "...", "input": "...", "output": "..."}',
        _alpaca,
    ),
    "text-label": Format(("text", "label"), (), '{"text": "...", "label": "..."}', _text_label),
    "text": Format(("text",), (), '{"text": "..."}', _text),
}


def parse_row(
    value: object,
    origin: str,
    form: RowFormat = "auto",
    columns: Mapping[str, str] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    whole: bool = False,
    pairs: bool = False,
    place: str = "columns",
) -> Row:
    """Read one row.

    Args:
        value: as it stands in its source.
        origin: where it stands.
        form: its format; `auto` tells it by the columns.
        columns: which column a field of the format is in.
        names: of the classes of a column of class numbers.
        whole: whether every turn of a conversation is learned, so that any may be the last.
        pairs: whether pairs of preference are wanted, and nothing else.
        place: the recipe's field of `columns`, for messages.

    Raises:
        DataError: if its format is unknown or not wanted, or a field is wrong, naming `origin`.
    """
    if not isinstance(value, Mapping):
        found = type(value).__name__
        raise DataError(f"{origin}: an object is wanted, found {found}: {_shown()}")
    if names:
        value = {**value, **{c: _class_name(value, c, names[c], origin) for c in names}}
    if columns:
        value = _renamed(value, origin, columns)
    known = recognised(value, columns or {}) if form == "auto" else form
    if form == "auto" and pairs and {"chosen", "rejected"} <= set(value):
        # UltraFeedback and others have the chosen conversation once more, as `messages`.
        known = "preference"
    if known is None:
        keys = ", ".join(sorted(map(str, value))) or "(none)"
        raise DataError(f"{origin}: no known format in the keys {keys}; possible: {_shown()}")
    missing = [field for field in FORMATS[known].fields if field not in value]
    if missing:
        raise DataError(
            f"{origin}: format {known} wants {FORMATS[known].shown}; no column "
            f"{missing[0]!r}{nearest(missing[0], value)}; it has "
            f"{', '.join(map(str, value)) or '(none)'}. {place} says which is meant"
        )
    _require_kind(known, pairs, origin)
    row = FORMATS[known].read(value, origin)
    if row.messages:
        check = check_spoken if whole else check_last
        check(row.messages, origin)
    return dataclasses.replace(row, format=known)


def recognised(value: Value, columns: Mapping[str, str]) -> RowFormat | None:
    """The first format that a row has all fields of, and that knows the fields of `columns`."""
    for name, form in FORMATS.items():
        if set(form.fields) <= set(value) and set(columns) <= {*form.fields, *form.optional}:
            return name
    return None


def check_columns(columns: Mapping[str, str], form: RowFormat, place: str) -> None:
    """Refuse a mapping of fields that the format does not have.

    Raises:
        DataError: naming the nearest.
    """
    formats = FORMATS.values() if form == "auto" else [FORMATS[form]]
    fields = list(dict.fromkeys(f for one in formats for f in (*one.fields, *one.optional)))
    for field in columns:
        if field not in fields:
            named = "any format" if form == "auto" else f"format {form}"
            raise DataError(
                f"{place}: {field} is no field of {named}{nearest(field, fields)}; "
                f"possible: {', '.join(fields)}"
            )


def nearest(name: str, names: Sequence[str] | Value) -> str:
    """`; did you mean ...?` where one of the names is near."""
    near = difflib.get_close_matches(name, [str(one) for one in names], n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else ""


def _renamed(value: Value, origin: str, columns: Mapping[str, str]) -> Value:
    for field, column in columns.items():
        if column not in value:
            raise DataError(
                f"{origin}: no column {column!r}, which columns.{field} names"
                f"{nearest(column, value)}; it has {', '.join(map(str, value)) or '(none)'}"
            )
    return {**value, **{field: value[column] for field, column in columns.items()}}


def _class_name(value: Value, column: str, names: Sequence[str], origin: str) -> Any:
    number = value.get(column)
    if number is None:
        return None
    if not 0 <= number < len(names):
        raise DataError(f"{origin}: `{column}` is {number}, no class; 0 to {len(names) - 1} are")
    return names[number]


def _shown() -> str:
    return ", ".join(form.shown for form in FORMATS.values())
