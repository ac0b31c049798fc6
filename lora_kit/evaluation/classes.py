"""Classification tasks as a head is asked them: the text alone, and all of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from lora_kit.data.labelled import encode_texts
from lora_kit.evaluation.grading import grade_class
from lora_kit.evaluation.headed import Askable
from lora_kit.evaluation.item import ClassRequest, Item, Task
from lora_kit.evaluation.reading import Question
from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.evaluation.tasks import chosen_rows
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKABLE = Askable(
    "a classifier",
    "classification",
    "answers tasks of the kind classification alone; name a suite of such tasks",
    (None, "accuracy", "macro_f1", "loss"),
    "a head's classes have no length",
)


def build_class_task(
    suite: Suite, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str]
) -> Task:
    """Read, choose and tokenize a task's items for a head.

    Args:
        suite: of the task.
        spec: the task.
        tokenizer: of the backbone.
        classes: that the head chooses from, in the order of its outputs.

    Raises:
        EvaluationError: if a head cannot be asked this.
        DataError: if the source does not fit, or an item's class is none of the head's.
    """
    ASKABLE.require(suite, spec)
    if spec.template or spec.chat:
        say(f"{suite.name}/{spec.name}: a head reads the text alone, without the task's template")
    rows: list[Question] = chosen_rows(spec, suite.seed)[0]
    texts = [_text(row, spec) for row in rows]
    encoded = encode_texts(texts, tokenizer, spec.max_length)
    cut = sum(truncated for _, truncated in encoded)
    if cut:
        say(f"{suite.name}/{spec.name}: {cut} of {len(rows)} texts are cut at the model's length")
    items = [
        Item(
            id=row.id,
            cluster=row.cluster,
            prompt=text,
            reference=row.choices[row.answer],
            request=ClassRequest(ids),
            # Not by class: the base says one and the same, which nothing else gets right as often.
            slices={name: value for name, value in row.slices.items() if name != "label"},
            choices=tuple(classes),
            answer=_number(row, spec, classes),
        )
        for row, text, (ids, _) in zip(rows, texts, encoded, strict=True)
    ]
    return Task(spec, items, partial(grade_class, score=spec.score or "accuracy"))


def _text(row: Question, spec: TaskSpec) -> str:
    text = row.fields.get("text", "")
    if not text.strip():
        raise DataError(
            f"{row.id}: no field `text`, which a head reads; task {spec.name} can map one with "
            "columns: {text: ...}"
        )
    return text


def _number(row: Question, spec: TaskSpec, classes: Sequence[str]) -> int:
    label = row.choices[row.answer]
    if label not in classes:
        raise DataError(
            f"{row.id}: task {spec.name}: its class {label!r} is none that the head was trained "
            f"for: {', '.join(classes)}"
        )
    return classes.index(label)
