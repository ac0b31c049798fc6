"""Rows of multiple-choice and classification tasks."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_kit.data.columns import refuse_media
from lora_kit.data.formats import parse_row
from lora_kit.data.labelled import classification_text, refuse_similar_labels
from lora_kit.data.rows import Message, Row
from lora_kit.data.sources import BUILT_IN, drop_nulls
from lora_kit.data.strict_json import decode_cell
from lora_kit.data.turns import read_text
from lora_kit.evaluation.items.registry import CHOICE_SOURCES
from lora_kit.evaluation.items.row import ChoiceRow
from lora_kit.evaluation.task_spec import TEMPLATE_FIELD, TaskSpec
from lora_kit.evaluation.task_tables import (
    read_built_in,
    read_task_table,
    refuse_own_fields,
    row_cluster,
    row_identifier,
    row_slices,
    unread_by_task,
)
from lora_kit.runtime.errors import DataError

# Fields of templates that hold the text to answer; others may hold numbers.
TEXT_FIELDS = ("question", "prompt", "text")
QUESTION_ROW = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
LABEL_ROW = '{"text": "...", "label": "..."}'


@dataclass(frozen=True)
class Question:
    """Row of multiple choice or classification.

    Attributes:
        fields: values for the fields of a template.
        answer: index of the correct choice.
        unused: columns of the row that are not used.
    """

    id: str
    fields: Mapping[str, str]
    choices: tuple[str, ...]
    answer: int
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def read_questions(spec: TaskSpec) -> list[Question]:
    """Read the rows of a multiple-choice task; a preference pair is a question of two choices.

    Raises:
        DataError: if the source is unknown, or a row is invalid; names the row.
    """
    if spec.source in CHOICE_SOURCES:
        refuse_own_fields(spec)
        return [
            Question(r.id, {"question": r.question}, r.choices, r.answer, r.cluster, r.slices)
            for r in CHOICE_SOURCES[spec.source]()
        ]
    if spec.source in BUILT_IN:
        rows = read_built_in(spec, ("preference",))
        return [_pair_question(row, row.origin, row.cluster) for row in rows]
    return [
        _pair(value, origin, spec)
        if None not in (value.get("chosen"), value.get("rejected"))
        else _question(value, origin, spec)
        for value, origin in read_task_table(spec, CHOICE_SOURCES, indices=("answer",))
    ]


def read_labelled(spec: TaskSpec) -> list[Question]:
    """Read the rows of a classification task; the choices of every row are all labels.

    Raises:
        DataError: if the source is unknown, a row is invalid, or there are fewer than two labels.
    """
    if spec.source in BUILT_IN:
        return _built_in_labelled(spec)
    table = read_task_table(spec, _labelled_sources())
    rows = []
    for value, origin in table:
        refuse_media(value, origin)
        _require_text_fields(value, origin, spec)
        rows.append((value, origin, _label(value, origin, spec)))
    labels = tuple(spec.labels or sorted({label for _, _, label in rows}))
    refuse_similar_labels(labels, f"task {spec.name}: source")
    if len(labels) < 2:
        raise DataError(
            f"task {spec.name}: source: at least two different labels are needed (got "
            f"{', '.join(labels) or 'none'}). Fix: set `labels`, or use another source"
        )
    for _, origin, label in rows:
        _require_known(label, labels, origin)
    return [
        Question(
            row_identifier(value, origin),
            _template_fields(value),
            labels,
            labels.index(label),
            row_cluster(value, origin, spec),
            {"label": label, **row_slices(value, origin, spec)},
            _unused(value, spec, "label"),
        )
        for value, origin, label in rows
    ]


def _labelled_sources() -> list[str]:
    """Return the built-in sources whose rows have a class."""
    return [name for name, one in BUILT_IN.items() if one.format == "text-label"]


def _built_in_labelled(spec: TaskSpec) -> list[Question]:
    rows = read_built_in(spec)
    if any(row.label is None for row in rows):
        raise DataError(
            f"task {spec.name}: source: the rows have no labels (got {spec.source}). Fix: use one "
            f"of the sources built in for classification: {', '.join(_labelled_sources())}"
        )
    labels = tuple(spec.labels or sorted({str(row.label) for row in rows}))
    for row in rows:
        _require_known(str(row.label), labels, row.origin)
    return [
        Question(
            row.origin,
            {"text": classification_text(row)},
            labels,
            labels.index(str(row.label)),
            row.cluster,
            {"label": str(row.label)},
        )
        for row in rows
    ]


def _require_known(label: str, labels: tuple[str, ...], origin: str) -> None:
    if label not in labels:
        raise DataError(
            f"{origin}: label: not one of {', '.join(labels)} (got {label!r}). Fix: add it to the "
            "`labels` of the task, or correct the row"
        )


def _question(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> Question:
    refuse_media(value, origin)
    if not {"choices", "answer"} <= set(value):
        raise DataError(
            f"{origin}: `choices` and `answer` are required (got {', '.join(map(str, value))}). "
            f"Fix: write {QUESTION_ROW}, or set `columns`"
        )
    _require_text_fields(value, origin, spec)
    choices, answer = _choices(value["choices"]), value["answer"]
    if len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError(
            f"{origin}: choices: at least two non-empty texts are required (got "
            f"{value['choices']!r}). Fix: write {QUESTION_ROW}"
        )
    spaced = [_spaced(choice) for choice in choices]
    twice = next((choice for choice in spaced if spaced.count(choice) > 1), None)
    if twice is not None:
        raise DataError(
            f"{origin}: choices: each must differ from the others by more than white space (got "
            f"{twice!r} twice). Fix: remove one, or correct the row"
        )
    if isinstance(answer, str):
        # A CSV file holds an index as text; a choice that is written alike comes first.
        answer = choices.index(answer) if answer in choices else _index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f"{origin}: answer: not a choice (got {answer!r}). Fix: give the correct choice or its "
            f"index, 0 to {len(choices) - 1}"
        )
    return Question(
        row_identifier(value, origin),
        _template_fields(value),
        tuple(choices),
        answer,
        row_cluster(value, origin, spec),
        row_slices(value, origin, spec),
        _unused(value, spec, "choices", "answer"),
    )


def _unused(value: Mapping[str, Any], spec: TaskSpec, *fields: str) -> tuple[str, ...]:
    return unread_by_task(value, spec, (*fields, *re.findall(TEMPLATE_FIELD, spec.prompt_template)))


def _require_text_fields(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> None:
    """Refuse a question or text that is none, as training refuses it."""
    for name in re.findall(TEMPLATE_FIELD, spec.prompt_template):
        if name in TEXT_FIELDS and name in value:
            read_text(value[name], name, origin)


def _spaced(text: str) -> str:
    """Return a text with each run of white space as one space, none at the ends."""
    return " ".join(text.split())


def _index(text: str) -> int | str:
    """Return the index that a text holds, such as `3`; any other text, such as `03`, unchanged."""
    is_index = text.isascii() and text.isdigit() and str(int(text)) == text
    return int(text) if is_index else text


def _choices(value: Any) -> list[Any]:
    value = decode_cell(value)
    return list(value) if isinstance(value, list | tuple) else []


def _pair(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> Question:
    """Convert a preference pair to the question of which answer is the likelier one."""
    pair = drop_nulls(value, form="preference")
    row = parse_row(pair, origin, "preference", needed=("preference",))
    _require_texts_only([*row.messages, *row.rejected], origin)
    roles = [message.role for message in row.messages[:-1]]
    if roles != ["user"]:
        raise DataError(
            f"{origin}: prompt: the prompt of a pair has to be one turn of the user (got "
            f"{', '.join(roles)}). Fix: shorten the conversation to one turn"
        )
    read = set(value) - set(row.unused)
    question = _pair_question(
        row,
        row_identifier(value, origin),
        row_cluster(value, origin, spec),
        row_slices(value, origin, spec),
    )
    return dataclasses.replace(question, unused=unread_by_task(value, spec, read))


def _require_texts_only(turns: Sequence[Message], origin: str) -> None:
    """Refuse answers with more than a text, which would be compared without the rest."""
    for message in turns:
        others = [*(["tool_calls"] if message.tool_calls else []), *(k for k, _ in message.extra)]
        if others:
            raise DataError(
                f"{origin}: the {message.role}'s turn of a pair is compared by its text only (got "
                f"{', '.join(others)}). Fix: remove them, or write them into the text"
            )


def _pair_question(
    row: Row, identifier: str, cluster: str, slices: Mapping[str, str] | None = None
) -> Question:
    prompt, chosen = (message.content for message in row.messages)
    drawn = ChoiceRow.draw(
        identifier, prompt, chosen, [row.rejected[0].content], slices or {}, cluster
    )
    fields = {"prompt": prompt, "question": prompt}
    return Question(identifier, fields, drawn.choices, drawn.answer, cluster, drawn.slices)


def _label(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> str:
    """Return the label of a row, as written in JSON.

    An integer that is no label itself is an index into `labels` of the task, if set.
    """
    label = value.get("label")
    if not isinstance(label, str | int) or not str(label).strip():
        raise DataError(
            f"{origin}: label: missing or empty (got {label!r}). Fix: write {LABEL_ROW}"
        )
    written = label if isinstance(label, str) else json.dumps(label)
    index = _index(written)
    if written in spec.labels or not spec.labels or isinstance(index, str):
        return written
    if index >= len(spec.labels):
        raise DataError(
            f"{origin}: label: not an index of `labels` (got {label}). Fix: give 0 to "
            f"{len(spec.labels) - 1}"
        )
    return spec.labels[index]


def _template_fields(value: Mapping[str, Any]) -> dict[str, str]:
    """Return the values for a template: texts as they are, other values as JSON writes them."""
    return {
        str(name): held if isinstance(held, str) else json.dumps(held)
        for name, held in value.items()
        if isinstance(held, str | int | float)
    }
