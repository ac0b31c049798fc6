"""Classification tasks for a classifier's head, which reads the text without a template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from lora_kit.data.labelled import encode_texts
from lora_kit.evaluation.grading import grade_class
from lora_kit.evaluation.head_tasks import SupportedTasks
from lora_kit.evaluation.item import ClassRequest, Item, Task
from lora_kit.evaluation.questions import Question
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.tasks import select_rows
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSIFIER_TASKS = SupportedTasks(
    head="a classifier",
    kind="classification",
    example="",
    scores=(None, "accuracy", "macro_f1", "loss"),
    no_length="a head's classes have no length",
)


def build_class_task(
    suite: Suite, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str]
) -> Task:
    """Read, select and tokenize a task's items for a classifier's head.

    Args:
        suite: suite of the task.
        spec: classification task.
        tokenizer: tokenizer of the backbone.
        classes: classes of the head, in the order of its outputs.

    Raises:
        EvaluationError: if a classifier does not support the task.
        DataError: if the source is invalid, or the head lacks the class of an item.
    """
    CLASSIFIER_TASKS.require(suite, spec)
    if spec.template or spec.chat:
        say(
            f"{suite.name}/{spec.name}: template and chat are ignored: a classifier's head reads "
            "the text alone"
        )
    rows: list[Question] = select_rows(spec, suite.seed)[0]
    texts = [_text(row, spec) for row in rows]
    encoded = encode_texts(texts, tokenizer, spec.max_length)
    truncated = sum(is_truncated for _, is_truncated in encoded)
    if truncated:
        say(
            f"{suite.name}/{spec.name}: {truncated} of {len(rows)} texts are truncated to "
            f"max_length {spec.max_length}; raise it if the backbone supports more"
        )
    items = [
        Item(
            id=row.id,
            cluster=row.cluster,
            prompt=text,
            reference=row.choices[row.answer],
            request=ClassRequest(ids),
            # Not by label: the base always predicts the same class and is right on its slice only.
            slices={name: value for name, value in row.slices.items() if name != "label"},
            choices=tuple(classes),
            answer=_class_index(row, spec, classes),
        )
        for row, text, (ids, _) in zip(rows, texts, encoded, strict=True)
    ]
    unused = Counter(name for row in rows for name in row.unused)
    return Task(spec, items, partial(grade_class, score=spec.score or "accuracy"), unused)


def _text(row: Question, spec: TaskSpec) -> str:
    text = row.fields.get("text", "")
    if not text.strip():
        raise DataError(
            f"{row.id}: the field `text` is missing or empty (got fields "
            f"{', '.join(row.fields) or 'none'}). Fix: set `columns: {{text: ...}}` in task "
            f"{spec.name}"
        )
    return text


def _class_index(row: Question, spec: TaskSpec, classes: Sequence[str]) -> int:
    label = row.choices[row.answer]
    if label not in classes:
        raise DataError(
            f"{row.id}: the head was not trained on the class of this item of task {spec.name} "
            f"(got {label!r}). Fix: use one of {', '.join(classes)}"
        )
    return classes.index(label)
