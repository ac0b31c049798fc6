"""Row formats: definitions, detection by field names, and checks of a parsed row.

If the fields of a row match several formats, the first match in `FORMATS` applies: data sets have
columns beside those that matter (Alpaca has `text`, UltraChat a `prompt` beside its `messages`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lora_kit.data.columns import (
    RawRow,
    class_name,
    list_columns,
    refuse_media,
    rename_columns,
    unread_columns,
)
from lora_kit.data.format_readers import (
    alpaca_row,
    messages_row,
    preference_row,
    prompt_completion_row,
    sharegpt_row,
    text_label_row,
    text_row,
)
from lora_kit.data.rows import Row
from lora_kit.data.turns import check_has_assistant_turn, check_last_turn
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


TURNS = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
FORMATS: dict[RowFormat, Format] = {
    "messages": Format(
        ("messages",), ("tools", "system"), f'{{"messages": {TURNS}}}', messages_row
    ),
    "prompt-completion": Format(
        ("prompt", "completion"),
        ("tools", "label", "system"),
        '{"prompt": "...", "completion": "..."}',
        prompt_completion_row,
    ),
    "preference": Format(
        ("chosen", "rejected"),
        ("prompt", "system"),
        '{"prompt": "...", "chosen": "...", "rejected": "..."}',
        preference_row,
    ),
    "sharegpt": Format(
        ("conversations",),
        ("system", "tools"),
        '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
        sharegpt_row,
    ),
    "alpaca": Format(
        ("instruction", "output"),
        ("input", "system", "history"),
        '{"instruction": "...", "input": "...", "output": "..."}',
        alpaca_row,
    ),
    "text-label": Format(
        ("text", "label"), ("cluster",), '{"text": "...", "label": "..."}', text_label_row
    ),
    "text": Format(("text",), (), '{"text": "..."}', text_row),
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
    refuse_media(value, origin)
    row = FORMATS[name].read(value, origin)
    if row.messages:
        check = check_has_assistant_turn if train_on_all else check_last_turn
        check(row.messages, origin)
    read = {*FORMATS[name].fields, *FORMATS[name].optional, *(columns or {}).values()}
    if row.desirable is None and row.label is None:
        read.discard("label")
    unused = unread_columns(value, read)
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


def _example_rows() -> str:
    return ", ".join(form.example for form in FORMATS.values())
