"""An evaluation item as the audit sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lora_kit.data.audit.words import parts_of
from lora_kit.data.rows import Row

VALIDATION = "data.validation"


@dataclass(frozen=True)
class AuditedItem:
    """What an item asks, and what would be right.

    Attributes:
        id: within its task.
        prompt: what is asked, without what a template says around it; empty for a text whose
            likelihood is taken.
        answers: any of which is right; none where an answer is only checked.
        gain: whether its suite is one that the adapter is to be better at.
        cluster: items of one cluster are not independent.
    """

    suite: str
    task: str
    id: str
    prompt: str
    answers: tuple[str, ...]
    gain: bool = False
    cluster: str = ""


def held_out_items(rows: Iterable[Row]) -> list[AuditedItem]:
    """Rows as items: the last turn or the label is what is asked for, a text alone is an answer."""
    items = []
    for row in rows:
        *asked, answer = parts_of(row) or ("",)
        items.append(
            AuditedItem(
                suite=VALIDATION,
                task="rows",
                id=row.origin,
                prompt="\n\n".join(asked),
                answers=(answer,),
                cluster=row.cluster,
            )
        )
    return items
