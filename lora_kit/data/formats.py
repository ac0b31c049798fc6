"""Row formats: detection by field names, and parsing.

If the fields of a row match several formats, the first match in `FORMATS` applies: data sets have
columns beside those that matter (Alpaca has `text`, UltraChat a `prompt` beside its `messages`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lora_kit.data.columns import RawRow, class_name, list_columns, rename_columns
from lora_kit.data.rows import Message, Row
from lora_kit.data.turns import (
    check_has_assistant_turn,
    check_last_turn,
    read_conversations,
    read_messages,
    read_text,
    read_tools,
)
from lora_kit.recipe.data import RowFormat
from lora_kit.runtime.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Format:
    """Definition of one row format.

    Attributes:
        fields: required fields.
        optional: optional fields.
        example: example row for error messages.
        read: parser of a raw row and its origin.
    """

    fields: tuple[str, ...]
    optional: tuple[str, ...]
    example: str
    read: Callable[[RawRow, str], Row]


def _messages(value: RawRow, origin: str) -> Row:
    messages = _with_system(read_messages(value["messages"], "messages", origin), value, origin)
    return Row(origin, origin, messages, tools=read_tools(value.get("tools"), origin))


def _sharegpt(value: RawRow, origin: str) -> Row:
    messages = read_conversations(value["conversations"], "conversations", origin)
    messages = _with_system(messages, value, origin)
    return Row(origin, origin, messages, tools=read_tools(value.get("tools"), origin))


def _prompt_completion(value: RawRow, origin: str) -> Row:
    prompt = _turns(value["prompt"], "prompt", "user", origin)
    completion = _turns(value["completion"], "completion", "assistant", origin)
    if len(completion) > len(prompt) and completion[: len(prompt)] == prompt:
        # Some data sets, such as UltraFeedback, repeat the prompt in the answer.
        completion = completion[len(prompt) :]
    prompt = _with_system(prompt, value, origin)
    return Row(
        origin,
        origin,
        prompt + completion,
        tools=read_tools(value.get("tools"), origin),
        completion_from=len(prompt),
        desirable=_parse_desirable(value.get("label")),
    )


def _parse_desirable(label: object) -> bool | None:
    """Return the KTO label of a completion; `None` for any other column called `label`."""
    if isinstance(label, bool):
        return label
    # A CSV file holds text only.
    return {"true": True, "false": False}.get(label.lower()) if isinstance(label, str) else None


def _alpaca(value: RawRow, origin: str) -> Row:
    prompt = read_text(value["instruction"], "instruction", origin)
    context = value.get("input")
    if context is not None and str(context).strip():
        prompt = f"{prompt}\n\n{read_text(context, 'input', origin)}"
    answer = read_text(value["output"], "output", origin)
    earlier = _history(value.get("history"), origin)
    turns = (*earlier, Message("user", prompt), Message("assistant", answer))
    messages = _with_system(turns, value, origin)
    return Row(origin, origin, messages, completion_from=len(messages) - 1)


def _history(value: object, origin: str) -> tuple[Message, ...]:
    """Read the earlier turns of an Alpaca row: a list of pairs of question and answer."""
    if value in (None, "", []):
        return ()
    pairs = value if isinstance(value, list) else [value]
    turns: list[Message] = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(
                f"{origin}: history[{number}]: not a question and its answer (got {pair!r:.60}). "
                'Fix: write [["question", "answer"], ...]'
            )
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role, read_text(text, f"history[{number}]", origin)))
    return tuple(turns)


def _text_label(value: RawRow, origin: str) -> Row:
    label = value["label"]
    if isinstance(label, bool | int):
        label = json.dumps(label)
    label = read_text(label, "label", origin)
    text = read_text(value["text"], "text", origin)
    messages = (Message("user", text), Message("assistant", label))
    return Row(origin, origin, messages, completion_from=1, label=label)


def _text(value: RawRow, origin: str) -> Row:
    return Row(origin, origin, text=read_text(value["text"], "text", origin))


def _preference(value: RawRow, origin: str) -> Row:
    chosen = _turns(value["chosen"], "chosen", "assistant", origin)
    rejected = _turns(value["rejected"], "rejected", "assistant", origin)
    if "prompt" in value:
        prompt = _turns(value["prompt"], "prompt", "user", origin)
    else:
        # Some data sets, such as Anthropic's, give two conversations with a common prefix.
        equal = [one == other for one, other in zip(chosen, rejected, strict=False)]
        prompt = chosen[: (*equal, False).index(False)]
    # Some data sets, such as UltraFeedback, repeat the prompt in the answers.
    chosen, rejected = (
        turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
        for turns in (chosen, rejected)
    )
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if [message.role for message in turns] != ["assistant"]:
            roles = ", ".join(message.role for message in turns) or "none"
            raise DataError(
                f"{origin}: `{name}` must be one assistant turn after the shared prompt (got the "
                f"turns: {roles}). Fix: give the shared turns as `prompt`"
            )
    if not prompt:
        raise DataError(
            f"{origin}: `chosen` and `rejected` share no prompt. Fix: add the field `prompt`"
        )
    prompt = _with_system(prompt, value, origin)
    if chosen == rejected:
        raise DataError(
            f"{origin}: `chosen` and `rejected` are the same (got {chosen[0].content!r:.60} twice)."
            " Fix: remove the row"
        )
    return Row(
        origin, origin, prompt + chosen, completion_from=len(prompt), rejected=tuple(rejected)
    )


def _require_kind(form: RowFormat, pairs: bool, origin: str) -> None:
    if form == "preference" and not pairs:
        raise DataError(
            f"{origin}: this objective does not support preference pairs (got format preference). "
            "Fix: set training.objective to dpo, orpo or reward; to train on the chosen answers, "
            "set format: prompt-completion and columns: {completion: chosen}"
        )
    if pairs and form != "preference":
        raise DataError(
            f"{origin}: the objectives dpo, orpo and reward need preference pairs (got format "
            f"{form}). Fix: give rows of {FORMATS['preference'].example}"
        )


def _turns(value: object, field: str, role: str, origin: str) -> tuple[Message, ...]:
    """Read a text as one turn, or a list of turns (the conversational form of TRL)."""
    if isinstance(value, list):
        return read_messages(value, field, origin)
    return (Message(role, read_text(value, field, origin)),)


def _with_system(turns: tuple[Message, ...], value: RawRow, origin: str) -> tuple[Message, ...]:
    """Put the text of the column `system` before the turns."""
    system = value.get("system")
    if system is None or system == "":
        return turns
    first = Message("system", read_text(system, "system", origin))
    if not turns or turns[0].role != "system":
        return (first, *turns)
    if turns[0].content != first.content:
        raise DataError(
            f"{origin}: the column `system` and the first turn are two system texts (got "
            f"{first.content!r:.40} and {turns[0].content!r:.40}). Fix: keep one of them"
        )
    return turns


def _unused(value: RawRow, form: Format, columns: Mapping[str, str], row: Row) -> tuple[str, ...]:
    """Return the columns of a row that hold something and that its format does not read."""
    read = {*form.fields, *form.optional, *columns.values()}
    if row.desirable is None and row.label is None:
        read.discard("label")
    return tuple(
        str(name) for name, held in value.items() if name not in read and held not in EMPTY
    )


def _refuse_media(value: RawRow, origin: str) -> None:
    """Refuse a row with media beside its text, which would be trained on without them."""
    for name in MEDIA:
        if value.get(name) not in EMPTY:
            raise DataError(
                f"{origin}: only text is read (got the column `{name}`). Fix: use rows without "
                "media, or remove the column if the text stands by itself"
            )


# Values that hold nothing.
EMPTY: tuple[object, ...] = (None, "", [], {})
# Columns of media in data sets for vision and speech.
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
TURNS = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
FORMATS: dict[RowFormat, Format] = {
    "messages": Format(("messages",), ("tools", "system"), f'{{"messages": {TURNS}}}', _messages),
    "prompt-completion": Format(
        ("prompt", "completion"),
        ("tools", "label", "system"),
        '{"prompt": "...", "completion": "..."}',
        _prompt_completion,
    ),
    "preference": Format(
        ("chosen", "rejected"),
        ("prompt", "system"),
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
        ("input", "system", "history"),
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
    train_on_all: bool = False,
    pairs: bool = False,
    place: str = "columns",
) -> Row:
    """Parse one row.

    Args:
        value: raw row from its source.
        origin: location of the row, such as `chats.jsonl:12`, for error messages.
        form: format of the row; `auto` detects it by the columns.
        columns: column name by field of the format, if the names differ.
        names: class names by column, for columns of class indices.
        train_on_all: if true, every turn of a conversation is supervised, so that the last turn
            may have any role.
        pairs: if true, require preference pairs; if false, refuse them.
        place: recipe field of `columns`, for error messages.

    Raises:
        DataError: if the format is unknown or not allowed, or a field is malformed; the message
            names `origin`.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{origin}: a row must be an object (got {type(value).__name__}). Fix: write it as one "
            f"of {_example_rows()}"
        )
    if names:
        value = {**value, **{c: class_name(value, c, names[c], origin) for c in names}}
    if columns:
        value = rename_columns(value, origin, columns)
    name = detect_format(value, columns or {}) if form == "auto" else form
    if form == "auto" and pairs and {"chosen", "rejected"} <= set(value):
        # Some data sets, such as UltraFeedback, repeat the chosen conversation as `messages`.
        name = "preference"
    if name is None:
        raise DataError(
            f"{origin}: no known format (got the keys {list_columns(sorted(map(str, value)))}). "
            f"Fix: use the keys of one of {_example_rows()}"
        )
    missing = [field for field in FORMATS[name].fields if field not in value]
    if missing:
        raise DataError(
            f"{origin}: format {name}: no column {missing[0]!r} (got {list_columns(value)}; "
            f"expected {FORMATS[name].example}).{did_you_mean(missing[0], value)} Fix: map it "
            f"with {place}"
        )
    _require_kind(name, pairs, origin)
    _refuse_media(value, origin)
    row = FORMATS[name].read(value, origin)
    if row.messages:
        check = check_has_assistant_turn if train_on_all else check_last_turn
        check(row.messages, origin)
    unused = _unused(value, FORMATS[name], columns or {}, row)
    return dataclasses.replace(row, format=name, unused=unused)


def detect_format(value: RawRow, columns: Mapping[str, str]) -> RowFormat | None:
    """Return the first format whose fields the row has and which knows the fields of `columns`."""
    for name, form in FORMATS.items():
        if set(form.fields) <= set(value) and set(columns) <= {*form.fields, *form.optional}:
            return name
    return None


def check_columns(columns: Mapping[str, str], form: RowFormat, place: str) -> None:
    """Refuse a column mapping for fields that the format does not have.

    Args:
        columns: column name by field.
        form: format of the rows; `auto` allows the fields of all formats.
        place: recipe field of `columns`, for the error message.

    Raises:
        DataError: if a field is unknown; the message names the most similar field.
    """
    formats = FORMATS.values() if form == "auto" else [FORMATS[form]]
    fields = list(dict.fromkeys(f for one in formats for f in (*one.fields, *one.optional)))
    for field in columns:
        if field not in fields:
            owner = "any format" if form == "auto" else f"format {form}"
            raise DataError(
                f"{place}: {field} is no field of {owner}.{did_you_mean(field, fields)} Fix: use "
                f"one of {', '.join(fields)}"
            )


def _example_rows() -> str:
    return ", ".join(form.example for form in FORMATS.values())
