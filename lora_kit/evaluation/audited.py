"""The items of all suites as the audit of the training data sees them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.data.audit.item import AuditedItem
from lora_kit.evaluation.item import Item
from lora_kit.evaluation.suite import CHOOSING, QUESTION, TEXT, Suite, TaskSpec

if TYPE_CHECKING:
    from lora_kit.evaluation.engine.work import Work

# Of a document's field, to tell what is asked from a label or an id.
_FIELD_WORDS = 3


def audited_items(work: Sequence[Work]) -> list[AuditedItem]:
    """What is asked and what would be right, of each item of the planned work."""
    return [audited_item(one.suite, one.task.spec, item) for one in work for item in one.task.items]


def audited_item(suite: Suite, spec: TaskSpec, item: Item) -> AuditedItem:
    """What an item of any kind of task asks, without what its template says, and its answers."""
    prompt, answers = _asked(spec, item)
    return AuditedItem(
        suite=suite.name,
        task=spec.name,
        id=item.id,
        prompt=prompt,
        answers=answers,
        gain=suite.role == "gain",
        cluster=item.cluster,
    )


def _asked(spec: TaskSpec, item: Item) -> tuple[str, tuple[str, ...]]:
    """The prompt, and the answers of which any is right."""
    if spec.kind == "lm_eval":
        return _harness(item)
    if spec.kind == "instructions":
        return item.prompt, ()  # the reference only describes the checks
    if spec.kind in CHOOSING and item.answer is not None:
        template = spec.template or (QUESTION if spec.kind == "multiple_choice" else TEXT)
        return _unfilled(template, item.prompt), (item.choices[item.answer],)
    return item.prompt, item.references or (item.reference,)


def _unfilled(template: str, prompt: str) -> str:
    """What the template's fields were filled with; a training row may ask it in other words."""
    literals = re.split(r"\{\w+\}", template)
    pattern = "(.*?)".join(map(re.escape, literals))
    found = re.fullmatch(pattern, prompt, re.DOTALL)
    return "\n".join(found.groups()) if found and found.groups() else prompt


def _harness(item: Item) -> tuple[str, tuple[str, ...]]:
    """The same of an item of lm-evaluation-harness, whose document is the requests made of it."""
    if item.answer is not None:
        # Where the choices are contexts, the right one is what is asked.
        request = item.document[item.answer]
        context, continuation = request.args
        return _own_part(request.doc, str(context)), (str(continuation).strip(),)
    request = item.document[0]
    # Of several choices without an answer, which are right only the task's own function knows.
    return _own_part(request.doc, str(request.args[0])), () if item.choices else item.references


def _own_part(document: Mapping[str, Any], context: str) -> str:
    """The context without the solved examples that come first.

    Which fields it is written from only the task's template knows; what stands in it word for word
    was one. Else it is what comes behind the last blank line, which parts examples by default.
    """
    values = {value.strip() for value in document.values() if isinstance(value, str)}
    own = [v for v in values if v in context and len(v.split()) >= _FIELD_WORDS]
    whole = [one for one in own if not any(one != other and one in other for other in own)]
    if whole:
        return "\n".join(sorted(whole, key=context.rfind))
    return context.strip().rpartition("\n\n")[2]
