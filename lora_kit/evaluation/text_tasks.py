"""Tasks for a head that reads a text, without a template: a class, numbers, labels or tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_kit.backbone.heads import HeadOutputs
from lora_kit.data.labelled import classification_text, encode_texts
from lora_kit.data.scored import write_numbers
from lora_kit.data.tagged import label_values, write_labels
from lora_kit.evaluation.grading import grade_class
from lora_kit.evaluation.head_tasks import SupportedTasks
from lora_kit.evaluation.item import GradeFunction, Item, Task
from lora_kit.evaluation.label_grading import grade_labels
from lora_kit.evaluation.number_grading import grade_numbers
from lora_kit.evaluation.questions import Question
from lora_kit.evaluation.requests import ClassRequest, LabelRequest, NumberRequest, TextRequest
from lora_kit.evaluation.scores import SCORES
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.tag_grading import grade_tag_items, tag_item, tag_requests
from lora_kit.evaluation.target_rows import TargetRow
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import select_rows
from lora_kit.recipe.objective import HeadObjective
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextTask:
    """Tasks of one kind of head.

    Attributes:
        supported: tasks that the head supports.
        text: function from a row and the task to the text that the head reads.
        requests: function from the rows, their texts, the tokenizer and the maximum length in
            tokens to the requests, each with true if the text was truncated.
        item: function from a row, its text, its request, the task and the outputs of the head to
            the item.
        grade: function from the items and the task to the grading.
    """

    supported: SupportedTasks
    text: Callable[[Any, TaskSpec], str]
    requests: Callable[[Sequence[Any], Sequence[str], Any, int], Sequence[tuple[Any, bool]]]
    item: Callable[[Any, str, Any, TaskSpec, HeadOutputs], Item]
    grade: Callable[[Sequence[Item], TaskSpec], GradeFunction]


def build_text_task(
    suite: Suite, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, outputs: HeadOutputs
) -> Task:
    """Read, select and tokenize a task's items for a head that reads a text.

    Args:
        suite: suite of the task.
        spec: task of the kind that the head answers.
        tokenizer: tokenizer of the backbone.
        outputs: outputs of the head.

    Raises:
        EvaluationError: if the head does not support the task.
        DataError: if the source is invalid, or the head lacks the target of an item.
    """
    kind = KINDS[outputs.kind]
    kind.supported.require(suite, spec)
    if spec.template or spec.chat:
        say(
            f"{suite.name}/{spec.name}: template and chat are ignored: a classifier's head reads "
            "the text alone"
        )
    rows: list[Any] = select_rows(spec, suite.seed)[0]
    texts = [kind.text(row, spec) for row in rows]
    requests = kind.requests(rows, texts, tokenizer, spec.max_length)
    truncated = sum(is_truncated for _, is_truncated in requests)
    if truncated:
        say(
            f"{suite.name}/{spec.name}: {truncated} of {len(rows)} texts are truncated to "
            f"max_length {spec.max_length}; raise it if the backbone supports more"
        )
    items = [
        kind.item(row, text, request, spec, outputs)
        for row, text, (request, _) in zip(rows, texts, requests, strict=True)
    ]
    unused = Counter(name for row in rows for name in row.unused)
    return Task(spec, items, kind.grade(items, spec), unused)


def _text_requests(
    kind: type[TextRequest], _: Sequence[Any], texts: Sequence[str], tokenizer: Any, size: int
) -> list[tuple[TextRequest, bool]]:
    return [(kind(ids), truncated) for ids, truncated in encode_texts(texts, tokenizer, size)]


def _question_text(row: Question, spec: TaskSpec) -> str:
    text = row.fields.get("text", "")
    if not text.strip():
        raise DataError(
            f"{row.id}: the field `text` is missing or empty (got fields "
            f"{', '.join(row.fields) or 'none'}). Fix: set `columns: {{text: ...}}` in task "
            f"{spec.name}"
        )
    return text


def _target_text(row: TargetRow, _: TaskSpec) -> str:
    return classification_text(row.row)


def _class_item(
    row: Question, text: str, request: ClassRequest, spec: TaskSpec, outputs: HeadOutputs
) -> Item:
    label = row.choices[row.answer]
    if label not in outputs.names:
        raise DataError(
            f"{row.id}: the head was not trained on the class of this item of task {spec.name} "
            f"(got {label!r}). Fix: use one of {', '.join(outputs.names)}"
        )
    return Item(
        id=row.id,
        cluster=row.cluster,
        prompt=text,
        reference=label,
        request=request,
        # Not by label: the base always predicts the same class and is right on its slice only.
        slices={name: value for name, value in row.slices.items() if name != "label"},
        choices=outputs.names,
        answer=outputs.names.index(label),
    )


def _grade_classes(_: Sequence[Item], spec: TaskSpec) -> GradeFunction:
    return partial(grade_class, score=spec.score or "accuracy")


def _number_item(
    row: TargetRow, text: str, request: NumberRequest, spec: TaskSpec, outputs: HeadOutputs
) -> Item:
    values = row.row.values or {}
    if set(values) != set(outputs.names):
        raise DataError(
            f"{row.id}: other numbers than those of the head in task {spec.name} (got "
            f"{', '.join(values)}). Fix: give {', '.join(outputs.names)}"
        )
    numbers = {name: values[name] for name in outputs.names}
    return Item(
        id=row.id,
        cluster=row.cluster,
        prompt=text,
        reference=write_numbers(numbers),
        request=request,
        slices=row.slices,
        targets=numbers,
    )


def _grade_numbers(items: Sequence[Item], spec: TaskSpec) -> GradeFunction:
    """Return the grading by squared errors, divided by the variance of the items' numbers.

    Raises:
        DataError: if all items have the same number, so that there is no variance.
    """
    table = np.array([list(item.targets.values()) for item in items])
    for name, column in zip(items[0].targets, table.T, strict=True):
        if np.ptp(column) == 0:
            raise DataError(
                f"task {spec.name}: source: all items have the same number (got {name} "
                f"{column[0]:g} in {len(items)} items). Fix: add items with other numbers"
            )
    return partial(grade_numbers, variances=table.var(axis=0).tolist())


def _label_item(
    row: TargetRow, text: str, request: LabelRequest, spec: TaskSpec, outputs: HeadOutputs
) -> Item:
    labels = row.row.labels or ()
    unknown = sorted(set(labels) - set(outputs.names))
    if unknown:
        raise DataError(
            f"{row.id}: the head was not trained on a label of this item of task {spec.name} (got "
            f"{unknown[0]!r}). Fix: use some of {', '.join(outputs.names)}"
        )
    return Item(
        id=row.id,
        cluster=row.cluster,
        prompt=text,
        reference=write_labels(labels),
        request=request,
        slices=row.slices,
        choices=outputs.names,
        targets=dict(zip(outputs.names, label_values(labels, outputs.names), strict=True)),
    )


def _grade_labels(_: Sequence[Item], spec: TaskSpec) -> GradeFunction:
    return partial(grade_labels, score=str(spec.item_score))


KINDS: Mapping[HeadObjective, TextTask] = {
    "classification": TextTask(
        SupportedTasks(
            head="a classifier",
            kinds=("classification",),
            example="",
            scores=(None, "accuracy", "macro_f1", "mean_average_precision", "loss"),
            no_score="a head's classes have no length",
        ),
        _question_text,
        partial(_text_requests, ClassRequest),
        _class_item,
        _grade_classes,
    ),
    "regression": TextTask(
        SupportedTasks(
            head="a regression",
            kinds=("regression",),
            example="",
            scores=(None, *SCORES["regression"]),
            no_score="a head's numbers have no such score",
        ),
        _target_text,
        partial(_text_requests, NumberRequest),
        _number_item,
        _grade_numbers,
    ),
    "multi-label": TextTask(
        SupportedTasks(
            head="a multi-label head",
            kinds=("multi_label",),
            example="",
            scores=(None, *SCORES["multi_label"]),
            no_score="a head's labels have no such score",
        ),
        _target_text,
        partial(_text_requests, LabelRequest),
        _label_item,
        _grade_labels,
    ),
    "token-classification": TextTask(
        SupportedTasks(
            head="a token classifier",
            kinds=("token_classification",),
            example="",
            scores=(None, *SCORES["token_classification"]),
            no_score="a head's tags have no such score",
        ),
        _target_text,
        tag_requests,
        tag_item,
        grade_tag_items,
    ),
}
