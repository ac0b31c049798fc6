"""Rows of a task, whatever their source, before tokenization."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_kit.data.columns import refuse_media
from lora_kit.data.formats import parse_row
from lora_kit.data.rows import Row
from lora_kit.data.sources import BUILT_IN, drop_nulls
from lora_kit.evaluation.items.instruction_sources import INSTRUCTION_SOURCES
from lora_kit.evaluation.items.instructions import InstructionRow, parse_instruction
from lora_kit.evaluation.questions import read_labelled, read_questions
from lora_kit.evaluation.target_rows import read_similarities, read_targets
from lora_kit.evaluation.task_spec import TaskSpec
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

# Names of the field with the correct answers.
REFERENCES = ("references", "targets")
# Fields of a row of instructions; `example` is a response that passes its checks.
INSTRUCTION_FIELDS = ("prompt", "checks", "tools", "example")


@dataclass(frozen=True)
class Conversation:
    """Text or conversation.

    Attributes:
        references: correct last turns, any of which a metric accepts.
        unused: columns of the row that are not used.
    """

    id: str
    row: Row
    references: tuple[str, ...]
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """Prompt whose response is verified by checks."""

    id: str
    row: InstructionRow
    cluster: str
    slices: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def read_rows(spec: TaskSpec) -> list[Any]:
    """Read all rows of a task: `Question`, `TargetRow`, `Conversation` or `Instruction`.

    Raises:
        DataError: if the source does not fit the kind, is empty, or has duplicate ids.
    """
    readers: dict[str, Callable[[TaskSpec], list[Any]]] = {
        "loss": read_conversation_rows,
        "generation": read_conversation_rows,
        "multiple_choice": read_questions,
        "classification": read_labelled,
        "regression": read_targets,
        "multi_label": read_targets,
        "token_classification": read_targets,
        "retrieval": read_targets,
        "similarity": read_similarities,
        "instructions": read_instructions,
        "judge": read_prompts,
    }
    rows = readers[spec.kind](spec)
    if not rows:
        raise DataError(
            f"task {spec.name}: source: {spec.source} has no items (got split {spec.split}). Fix: "
            "name another split or source"
        )
    identifier, count = Counter(row.id for row in rows).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"task {spec.name}: source: ids have to be unique (got {count} items of {spec.source} "
            f"with the id {identifier!r}). Fix: make the ids unique, or remove the field `id`"
        )
    return rows


def read_conversation_rows(spec: TaskSpec) -> list[Conversation]:
    """Read the rows of a loss or a generation task.

    Raises:
        DataError: if the source is unknown, or a row is invalid; names the row.
    """
    if spec.source in BUILT_IN:
        rows = read_built_in(spec)
        return [Conversation(row.origin, row, _reference(row), row.cluster) for row in rows]
    return [_conversation(value, origin, spec) for value, origin in read_task_table(spec, BUILT_IN)]


def read_prompts(spec: TaskSpec) -> list[Conversation]:
    """Read the rows of a judge task; answers, where there are some, are left out.

    Raises:
        DataError: if the source is unknown, or a row is invalid; names the row.
    """
    if spec.source in BUILT_IN:
        found = read_conversation_rows(spec)
    else:
        table = read_task_table(spec, BUILT_IN)
        found = [_conversation(answered(drop_nulls(v)), origin, spec) for v, origin in table]
    return [
        dataclasses.replace(
            one,
            row=dataclasses.replace(one.row, messages=one.row.prompt_turns),
            references=(),
        )
        for one in found
    ]


def answered(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row without an answer with a dash as one, since rows are parsed with answers."""
    turns, prompt = value.get("messages"), value.get("prompt")
    answer = {"role": "assistant", "content": "-"}
    if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping):
        is_open = turns[-1].get("role") == "user"
        return {**value, "messages": [*turns, answer]} if is_open else value
    if prompt is None or not value.keys().isdisjoint({"completion", "chosen", *REFERENCES}):
        return value
    return {**value, "completion": "-" if isinstance(prompt, str) else [answer]}


def _conversation(value: Mapping[str, Any], origin: str, spec: TaskSpec) -> Conversation:
    references = _references(value, origin)
    if references:
        value = {"completion": references[0], **drop_nulls(value)}
    row = parse_row(drop_nulls(value), origin)
    if references and _reference(row)[0] not in references:
        raise DataError(
            f"{origin}: the answer and its references differ (got {_reference(row)[0]!r:.60} and "
            f"{references!r:.60}). Fix: add the answer to the references, or remove it"
        )
    cluster = row_cluster(value, origin, spec)
    row = dataclasses.replace(row, cluster=cluster)
    return Conversation(
        row_identifier(value, origin),
        row,
        tuple(references) if references else _reference(row),
        cluster,
        row_slices(value, origin, spec),
        unread_by_task(value, spec, {*REFERENCES, *value} - _unused(row)),
    )


def _unused(row: Row) -> set[str]:
    # A label of kto says nothing to a task.
    return {*row.unused, *(["label"] if row.desirable is not None else [])} - set(REFERENCES)


def _references(value: Mapping[str, Any], origin: str) -> list[str]:
    """Return the correct answers of a row; none for a row whose last turn is the only one.

    Raises:
        DataError: if they are no texts, or stand twice and differ.
    """
    given = {name: value[name] for name in REFERENCES if value.get(name) is not None}
    lists = {name: [one] if _is_text(one) else one for name, one in given.items()}
    for name, texts in lists.items():
        if not (isinstance(texts, list) and texts and all(map(_is_text, texts))):
            raise DataError(
                f"{origin}: {name}: not a text or a list of texts (got {texts!r}). Fix: write the "
                "correct answers as texts"
            )
    first, *others = lists.values() or ([],)
    if others and others[0] != first:
        raise DataError(
            f"{origin}: `references` and `targets` differ (got {first!r:.60} and "
            f"{others[0]!r:.60}). Fix: remove one of them"
        )
    return list(first)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _reference(row: Row) -> tuple[str, ...]:
    return (row.text if row.text is not None else row.messages[-1].content,)


def read_instructions(spec: TaskSpec) -> list[Instruction]:
    """Read the rows of an instructions task.

    Raises:
        DataError: if the source is unknown, or a check is invalid; names the row.
    """
    if spec.source in INSTRUCTION_SOURCES:
        return _built_in_instructions(spec)
    rows = []
    for value, origin in read_task_table(spec, tuple(INSTRUCTION_SOURCES)):
        refuse_media(value, origin)
        try:
            row = parse_instruction({**value, "id": row_identifier(value, origin)})
        except ValueError as error:
            raise DataError(f"{origin}: {error}") from error
        cluster, slices = row_cluster(value, origin, spec), row_slices(value, origin, spec)
        unused = unread_by_task(value, spec, INSTRUCTION_FIELDS)
        rows.append(Instruction(row.id, row, cluster, slices, unused))
    return rows


def _built_in_instructions(spec: TaskSpec) -> list[Instruction]:
    """Read a built-in source, or the subset of it that the task names.

    Raises:
        DataError: if the subset is unknown, or the task sets fields that the source defines.
    """
    refuse_own_fields(spec)
    rows = INSTRUCTION_SOURCES[spec.source]()
    subsets = sorted({row.subset for row in rows if row.subset})
    if spec.subset is not None and spec.subset not in subsets:
        raise DataError(
            f"task {spec.name}: subset: unknown for {spec.source} (got {spec.subset}). Fix: "
            + (f"use one of {', '.join(subsets)}" if subsets else "remove it")
        )
    selected = [row for row in rows if spec.subset in (None, row.subset)]
    return [Instruction(row.id, row, row.cluster or row.id, row.slices) for row in selected]
