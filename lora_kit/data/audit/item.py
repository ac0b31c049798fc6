"""Evaluation items in the form that the audit compares with training rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lora_kit.data.audit.words import row_texts
from lora_kit.data.rows import Row

VALIDATION = "data.validation"


@dataclass(frozen=True)
class AuditedItem:
    """Prompt of an evaluation item with its correct answers.

    Attributes:
        suite: name of the suite.
        task: name of the task.
        id: id of the item within its task.
        prompt: the prompt without the task's template; empty for a text scored by likelihood.
        answers: correct answers; empty if answers are verified by a program.
        gain: if true, the suite has the role `gain`.
        cluster: name of a group of dependent items.
    """

    suite: str
    task: str
    id: str
    prompt: str
    answers: tuple[str, ...]
    gain: bool = False
    cluster: str = ""


def held_out_items(rows: Iterable[Row]) -> list[AuditedItem]:
    """Convert rows to items whose answer is the label, the last turn or the text of the row."""
    items = []
    for row in rows:
        *prompt, answer = row_texts(row) or ("",)
        items.append(
            AuditedItem(
                suite=VALIDATION,
                task="rows",
                id=row.origin,
                prompt="\n\n".join(prompt),
                answers=(answer,),
                cluster=row.cluster,
            )
        )
    return items
