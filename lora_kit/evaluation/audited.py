"""Items of all suites in the form that the audit of the training data compares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.data.audit.item import AuditedItem
from lora_kit.evaluation.item import Item
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import CHOICE_KINDS, TEMPLATE_FIELD, TaskSpec

if TYPE_CHECKING:
    from lora_kit.evaluation.engine.work import Work

# Fewest words of a document's field that counts as part of the question, not as a label or an id.
_MIN_FIELD_WORDS = 3


def audited_items(work: Sequence[Work]) -> list[AuditedItem]:
    """Return the prompt and the correct answers of each item of the planned work."""
    return [audited_item(one.suite, one.task.spec, item) for one in work for item in one.task.items]


def audited_item(suite: Suite, spec: TaskSpec, item: Item) -> AuditedItem:
    """Return an item's prompt without the text of its template, and its correct answers."""
    prompt, answers = _prompt_and_answers(spec, item)
    return AuditedItem(
        suite=suite.name,
        task=spec.name,
        id=item.id,
        prompt=prompt,
        answers=answers,
        gain=suite.role == "gain",
        cluster=item.cluster,
    )


def asked_text(spec: TaskSpec, prompt: str) -> str:
    """Return the prompt of an item as a ledger records it, without the text of its template."""
    return _template_values(spec.prompt_template, prompt) if spec.kind in CHOICE_KINDS else prompt


def _prompt_and_answers(spec: TaskSpec, item: Item) -> tuple[str, tuple[str, ...]]:
    """Return the prompt and the answers, any of which is correct."""
    if spec.kind == "lm_eval":
        return _lm_eval_prompt_and_answers(item)
    if spec.kind in ("instructions", "judge"):
        return item.prompt, ()  # a reference only describes checks
    if spec.kind in CHOICE_KINDS and item.answer is not None:
        return asked_text(spec, item.prompt), (item.choices[item.answer],)
    return item.prompt, item.references or (item.reference,)


def _template_values(template: str, prompt: str) -> str:
    """Return the values of the template's fields; training rows may be phrased differently."""
    literals = re.split(TEMPLATE_FIELD, template)[::2]
    pattern = "(.*?)".join(map(re.escape, literals))
    match = re.fullmatch(pattern, prompt, re.DOTALL)
    return "\n".join(match.groups()) if match and match.groups() else prompt


def _lm_eval_prompt_and_answers(item: Item) -> tuple[str, tuple[str, ...]]:
    """Return prompt and answers of an lm-evaluation-harness item from its instances."""
    if item.answer is not None:
        # If the choices are contexts, the correct one is the prompt.
        request = item.document[item.answer]
        context, continuation = request.args
        return _without_shots(request.doc, str(context)), (str(continuation).strip(),)
    request = item.document[0]
    # Only the task's own function knows the correct one of several choices without an answer.
    answers = () if item.choices else item.references
    return _without_shots(request.doc, str(request.args[0])), answers


def _without_shots(document: Mapping[str, Any], context: str) -> str:
    """Return the context without the solved examples at its start.

    Only the task's template knows the fields that the context is made from; a value that occurs
    in the context verbatim is taken for one. Without such a value, the result is the text behind
    the last blank line, the default separator of examples.
    """
    values = {value.strip() for value in document.values() if isinstance(value, str)}
    own = [v for v in values if v in context and len(v.split()) >= _MIN_FIELD_WORDS]
    longest = [one for one in own if not any(one != other and one in other for other in own)]
    if longest:
        return "\n".join(sorted(longest, key=context.rfind))
    return context.strip().rpartition("\n\n")[2]
