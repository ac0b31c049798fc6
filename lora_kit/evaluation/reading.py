"""A task's rows, wherever they come from, before any tokenizer has seen them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_kit.data.files.tables import read_table
from lora_kit.data.formats import parse_row
from lora_kit.data.labelled import text_of
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.data.sources import BUILT_IN, SPLITS, read_source
from lora_kit.evaluation.items import instructions
from lora_kit.evaluation.items.registry import CHOICE_SOURCES
from lora_kit.evaluation.items.row import ChoiceRow
from lora_kit.evaluation.suite import TaskSpec
from lora_kit.recipe.data import SourceSpec
from lora_kit.runtime.errors import DataError

QUESTION_ROW = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
LABEL_ROW = '{"text": "...", "label": "..."}'


@dataclass(frozen=True)
class Question:
    """A row of multiple choice or classification.

    Attributes:
        fields: what a template can name.
        answer: index of the right choice.
    """

    id: str
    fields: Mapping[str, str]
    choices: tuple[str, ...]
    answer: int
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """A row of prose or of a conversation; any of `references` would be a right last turn."""

    id: str
    row: Row
    references: tuple[str, ...]
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Instruction:
    """A row of instructions that a program checks."""

    id: str
    row: instructions.InstructionRow
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)


def read_questions(spec: TaskSpec) -> list[Question]:
    """Rows of a multiple-choice task; a pair of preference is a question with two choices.

    Raises:
        DataError: if the source is unknown or a row is wrong, with its place.
    """
    if spec.source in CHOICE_SOURCES:
        _refuse_fields(spec)
        return [
            Question(r.id, {"question": r.question}, r.choices, r.answer, r.cluster, r.slices)
            for r in CHOICE_SOURCES[spec.source]()
        ]
    if spec.source in BUILT_IN:
        return [_preferred(row, row.origin, row.cluster) for row in _built_in_rows(spec, True)]
    return [
        _pair(value, origin, spec)
        if {"chosen", "rejected"} <= set(value)
        else _question(value, origin, spec)
        for value, origin in _table(spec, CHOICE_SOURCES)
    ]


def read_labelled(spec: TaskSpec) -> list[Question]:
    """Rows of a classification task: every row has all labels for choices.

    Raises:
        DataError: if the source is unknown, a row is wrong, or there are fewer than two labels.
    """
    if spec.source in BUILT_IN:
        return _built_in_labelled(spec)
    rows = [_labelled(value, origin, spec) for value, origin in _table(spec, _with_classes())]
    labels = tuple(spec.labels or sorted({label for _, _, label in rows}))
    if len(labels) < 2:
        raise DataError(f"task {spec.name}: {spec.source} has the one label {labels}; two differ")
    for _, origin, label in rows:
        if label not in labels:
            raise DataError(f"{origin}: label {label!r}; possible: {', '.join(labels)}")
    return [
        Question(
            _identifier(value, origin),
            _texts(value),
            labels,
            labels.index(label),
            _cluster(value, origin, spec),
            {"label": label, **_slices(value, origin, spec)},
        )
        for value, origin, label in rows
    ]


def _with_classes() -> list[str]:
    """Built-in sources whose rows have a class."""
    return [name for name in BUILT_IN if BUILT_IN[name][0]()[0].label is not None]


def _built_in_labelled(spec: TaskSpec) -> list[Question]:
    rows = _built_in(spec)
    if any(row.label is None for row in rows):
        raise DataError(
            f"task {spec.name}: {spec.source} has no classes; built in for classification: "
            f"{', '.join(_with_classes())}"
        )
    labels = tuple(spec.labels or sorted({str(row.label) for row in rows}))
    for row in rows:
        if row.label not in labels:
            raise DataError(f"{row.origin}: label {row.label!r}; possible: {', '.join(labels)}")
    return [
        Question(
            row.origin,
            {"text": text_of(row)},
            labels,
            labels.index(str(row.label)),
            row.cluster,
            {"label": str(row.label)},
        )
        for row in rows
    ]


def _built_in(spec: TaskSpec) -> Rows:
    if spec.split not in SPLITS:
        raise DataError(
            f"task {spec.name}: split {spec.split}; {spec.source} has train, validation, test "
            "and all"
        )
    _refuse_fields(spec)
    source = SourceSpec(source=spec.source, split=spec.split)
    return read_source(source, 0, f"task {spec.name}: source")


def read_talks(spec: TaskSpec) -> list[Conversation]:
    """Rows of a loss or a generation task.

    Raises:
        DataError: if the source is unknown or a row is wrong, with its place.
    """
    if spec.source in BUILT_IN:
        rows = _built_in_rows(spec)
        return [Conversation(row.origin, row, _reference(row), row.cluster) for row in rows]
    return [_talk(value, origin, spec) for value, origin in _table(spec, BUILT_IN)]


def read_instructions(spec: TaskSpec) -> list[Instruction]:
    """Rows of an instructions task.

    Raises:
        DataError: if the source is unknown or a check is wrong, with its place.
    """
    if spec.source == "instructions":
        _refuse_fields(spec)
        return [
            Instruction(row.id, row, row.id, {"check": row.checks[0].kind})
            for row in instructions.rows()
        ]
    rows = []
    for value, origin in _table(spec, ("instructions",)):
        try:
            row = instructions.parse({**value, "id": _identifier(value, origin)})
        except ValueError as error:
            raise DataError(f"{origin}: {error}") from error
        rows.append(
            Instruction(row.id, row, _cluster(value, origin, spec), _slices(value, origin, spec))
        )
    return rows


def _built_in_rows(spec: TaskSpec, pairs: bool = False) -> Sequence[Row]:
    if spec.split not in ("train", "validation", "test", "all"):
        raise DataError(
            f"task {spec.name}: split {spec.split}; {spec.source} has train, validation, test and "
            "all"
        )
    _refuse_fields(spec)
    source = SourceSpec(source=spec.source, split=spec.split)
    return read_source(source, 0, f"task {spec.name}: source", pairs=pairs)


def _refuse_fields(spec: TaskSpec) -> None:
    """An option that would not be used is no option."""
    named = [name for name in ("columns", "cluster", "slices") if getattr(spec, name)]
    if named:
        raise DataError(
            f"task {spec.name}: {named[0]}: {spec.source} is built in and brings its own; leave it "
            "out"
        )


def _table(spec: TaskSpec, built_in: Collection[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a table, its columns under the names that the kind knows them by."""
    place = f"task {spec.name}: source"
    known = f" (built in for {spec.kind}: {', '.join(built_in)})" if built_in else ""
    try:
        rows = read_table(spec.source, place, spec.subset, spec.split, spec.revision)
        for value, origin in rows:
            absent = sorted(set(spec.columns.values()) - set(value))
            if absent:
                raise DataError(
                    f"{origin}: no column {absent[0]!r}, which task {spec.name} names; it has "
                    f"{', '.join(map(str, value))}"
                )
            yield (
                {**value, **{ours: value[theirs] for ours, theirs in spec.columns.items()}},
                origin,
            )
    except DataError as error:
        if known and spec.source in str(error) and not Path(spec.source).exists():
            raise DataError(f"{error}{known}") from error
        raise


def _question(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> Question:
    if not {"choices", "answer"} <= set(value):
        raise DataError(f"{origin}: {QUESTION_ROW} is wanted")
    choices, answer = _choices(value["choices"]), value["answer"]
    if len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError(f"{origin}: at least two choices, texts, are wanted: {QUESTION_ROW}")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f"{origin}: `answer` is {answer!r}; the right choice or its index is wanted, 0 to "
            f"{len(choices) - 1}"
        )
    return Question(
        _identifier(value, origin),
        _texts(value),
        tuple(choices),
        answer,
        _cluster(value, origin, spec),
        _slices(value, origin, spec),
    )


def _pair(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> Question:
    """A pair of preference as the question which of the two is the likelier answer."""
    row = parse_row(value, origin, "preference", pairs=True)
    if [message.role for message in row.messages[:-1]] != ["user"]:
        raise DataError(f"{origin}: of a pair, the prompt of a question is one turn of the user")
    slices = _slices(value, origin, spec)
    return _preferred(row, _identifier(value, origin), _cluster(value, origin, spec), slices)


def _preferred(
    row: Row, identifier: str, cluster: str, slices: Mapping[str, str] | None = None
) -> Question:
    asked, chosen = (message.content for message in row.messages)
    drawn = ChoiceRow.draw(
        identifier, asked, chosen, [row.rejected[0].content], slices or {}, cluster
    )
    fields = {"prompt": asked, "question": asked}
    return Question(identifier, fields, drawn.choices, drawn.answer, cluster, drawn.slices)


def _choices(value: Any) -> list[Any]:
    if isinstance(value, str):
        # A CSV file holds a list as text.
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return list(value) if isinstance(value, list | tuple) else []


def _labelled(
    value: Mapping[str, Any], origin: str, spec: TaskSpec
) -> tuple[Mapping[str, Any], str, str]:
    label = value.get("label")
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        raise DataError(f"{origin}: `label` is {label!r}; {LABEL_ROW} is wanted")
    if isinstance(label, int) and spec.labels:
        if not 0 <= label < len(spec.labels):
            raise DataError(f"{origin}: `label` is {label}; 0 to {len(spec.labels) - 1} are named")
        return value, origin, spec.labels[label]
    return value, origin, str(label)


def _talk(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> Conversation:
    references = value.get("references", value.get("targets"))
    if _is_text(references):
        references = [references]
    if references is not None:
        if not (isinstance(references, list) and references and all(map(_is_text, references))):
            raise DataError(
                f"{origin}: `references` has to be a text or a list of them, found {references!r}"
            )
        value = {"completion": references[0], **value}
    row = parse_row(value, origin)
    cluster = _cluster(value, origin, spec)
    row = dataclasses.replace(row, cluster=cluster)
    return Conversation(
        _identifier(value, origin),
        row,
        tuple(references) if references else _reference(row),
        cluster,
        _slices(value, origin, spec),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _reference(row: Row) -> tuple[str, ...]:
    return (row.text if row.text is not None else row.messages[-1].content,)


def _identifier(value: Mapping[str, Any], origin: str) -> str:
    identifier = value.get("id")
    return origin if identifier is None else str(identifier)


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items() if isinstance(v, str | int | float)}


def _cluster(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> str:
    if spec.cluster is None:
        return _identifier(value, origin)
    return _field(value, spec.cluster, origin, f"cluster of task {spec.name}")


def _slices(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> dict[str, str]:
    return {
        name: _field(value, name, origin, f"slices of task {spec.name}") for name in spec.slices
    }


def _field(value: Mapping[str, Any], name: str, origin: str, place: str) -> str:
    if name not in value:
        raise DataError(
            f"{origin}: no field {name!r}, which {place} names; it has {', '.join(map(str, value))}"
        )
    return str(value[name])
