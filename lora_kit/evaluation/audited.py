"""The items of all suites as the audit of the training data sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_kit.data.audit.item import AuditedItem
from lora_kit.evaluation.item import Item
from lora_kit.evaluation.suite import CHOOSING, QUESTION, TEXT, Suite, TaskSpec

if TYPE_CHECKING:
    from lora_kit.evaluation.engine.work import Work

# Of a document's field, to tell the question from a label or an id.
_QUESTION_WORDS = 3


def audited_items(work: Sequence[Work]) -> list[AuditedItem]:
    """What is asked and what would be right, of each item of the planned work."""
    return [audited_item(one.suite, one.task.spec, item) for one in work for item in one.task.items]


def audited_item(suite: Suite, spec: TaskSpec, item: Item) -> AuditedItem:
    """What an item of any kind of task asks, without what its template says, and its answers."""
    return AuditedItem(
        suite=suite.name,
        task=spec.name,
        id=item.id,
        prompt=_question(spec, item),
        answers=_answers(spec, item),
        gain=suite.role == "gain",
        cluster=item.cluster,
    )


def _answers(spec: TaskSpec, item: Item) -> tuple[str, ...]:
    if spec.kind == "instructions" or (item.choices and item.answer is None):
        return ()  # the reference only describes the checks, or which choice is right is not known
    if item.answer is not None:
        return (item.choices[item.answer],)
    return item.references or (item.reference,)


def _question(spec: TaskSpec, item: Item) -> str:
    if spec.kind in CHOOSING:
        template = spec.template or (QUESTION if spec.kind == "multiple_choice" else TEXT)
        return _unfilled(template, item.prompt)
    if spec.kind == "lm_eval":
        return _own_part(item)
    return item.prompt


def _unfilled(template: str, prompt: str) -> str:
    """What the template's fields were filled with; a training row may ask it in other words."""
    literal = True
    pattern = ""
    for part in re.split(r"\{(\w+)\}", template):
        pattern += re.escape(part) if literal else "(.*?)"
        literal = not literal
    found = re.fullmatch(pattern, prompt, re.DOTALL)
    return "\n".join(found.groups()) if found and found.groups() else prompt


def _own_part(item: Item) -> str:
    """The prompt of lm-evaluation-harness without the solved examples that it puts first.

    Which fields a prompt is written from only the task's template knows; what stands in it word for
    word was one. Else it is what comes behind the last blank line, which parts examples by default.
    """
    values = [v for v in _texts(item.document) if len(v.split()) >= _QUESTION_WORDS]
    own = [value for value in dict.fromkeys(values) if value in item.prompt]
    whole = [one for one in own if not any(one != other and one in other for other in own)]
    if whole:
        return "\n".join(whole)
    return item.prompt.strip().rpartition("\n\n")[2]


def _texts(document: object) -> Iterator[str]:
    """The texts of the document that the first of lm-eval's instances was made from."""
    if isinstance(document, tuple) and document:
        for value in dict(document[0].doc).values():
            if isinstance(value, str):
                yield value.strip()
