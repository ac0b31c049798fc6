"""Row formats: definitions, detection by field names, and checks of a parsed row.

If the fields of a row match several formats, the first match in `FORMATS` applies: data sets have
columns beside those that matter (Alpaca has `text`, UltraChat a `prompt` beside its `messages`).
Formats that an objective needs come before all others, and those in `ON_REQUEST` only then: many
texts have a column `score` of their quality.
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
from lora_kit.data.entities import EXAMPLE
from lora_kit.data.format_readers import (
    alpaca_row,
    messages_row,
    pair_row,
    preference_row,
    prompt_completion_row,
    sharegpt_row,
    text_label_row,
    text_labels_row,
    text_row,
    text_score_row,
    text_scores_row,
    tokens_tags_row,
    triplet_row,
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
    "text-score": Format(("text", "score"), (), '{"text": "...", "score": 3.5}', text_score_row),
    "text-scores": Format(
        ("text", "scores"), (), '{"text": "...", "scores": {"price": 3.5}}', text_scores_row
    ),
    "text-labels": Format(
        ("text", "labels"), (), '{"text": "...", "labels": ["a", "b"]}', text_labels_row
    ),
    "triplet": Format(
        ("anchor", "positive", "negative"),
        ("cluster",),
        '{"anchor": "...", "positive": "...", "negative": "..."}',
        triplet_row,
    ),
    "pair": Format(
        ("anchor", "positive"), ("cluster",), '{"anchor": "...", "positive": "..."}', pair_row
    ),
    "tokens-tags": Format(("tokens", "tags"), ("cluster",), EXAMPLE, tokens_tags_row),
    "text": Format(("text",), (), '{"text": "..."}', text_row),
}
# Formats that are detected only for an objective that needs them.
ON_REQUEST: tuple[RowFormat, ...] = (
    "text-score",
    "text-scores",
    "text-labels",
    "tokens-tags",
    "triplet",
    "pair",
)
# What the objectives of a needed format need.
NEEDS: dict[RowFormat, str] = {
    "preference": "the objectives dpo, orpo and reward need preference pairs",
    "text-score": "regression needs a number in each row",
    "text-labels": "multi-label needs a list of labels in each row",
    "tokens-tags": "token-classification needs words and a tag for each of them",
    "triplet": "embedding needs pairs of texts, or triplets",
}


def parse_row(
    value: object,
    origin: str,
    form: RowFormat = "auto",
    columns: Mapping[str, str] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    train_on_all: bool = False,
    needed: Sequence[RowFormat] = (),
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
        needed: formats that the objective needs; all but `preference` if empty.
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
    name = detect_format(value, columns or {}, needed) if form == "auto" else form
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
    _require_kind(name, needed, origin)
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


def detect_format(
    value: RawRow, columns: Mapping[str, str], needed: Sequence[RowFormat] = ()
) -> RowFormat | None:
    """Return the first format whose fields the row has and which knows the fields of `columns`.

    Args:
        value: the row.
        columns: column name by field, if the names differ.
        needed: formats that the objective needs, which come first. Some data sets, such as
            UltraFeedback, repeat the chosen conversation of a pair as `messages`.
    """
    others = [name for name in FORMATS if name not in ON_REQUEST]
    for name in (*needed, *others):
        form = FORMATS[name]
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


def _require_kind(form: RowFormat, needed: Sequence[RowFormat], origin: str) -> None:
    if form == "preference" and form not in needed:
        raise DataError(
            f"{origin}: this objective does not support preference pairs (got format preference). "
            "Fix: set training.objective to dpo, orpo or reward; to train on the chosen answers, "
            "set format: prompt-completion and columns: {completion: chosen}"
        )
    if form == "triplet" and form not in needed:
        raise DataError(
            f"{origin}: this objective does not support triplets (got format triplet). Fix: set "
            "training.objective to embedding; to learn the positive of an anchor as its answer, "
            "set format: prompt-completion and columns: {prompt: anchor, completion: positive}"
        )
    if needed and form not in needed:
        examples = " or ".join(FORMATS[name].example for name in needed)
        raise DataError(
            f"{origin}: {NEEDS[needed[0]]} (got format {form}). Fix: give rows of {examples}, or "
            "map their columns"
        )


def _example_rows() -> str:
    return ", ".join(form.example for form in FORMATS.values())
