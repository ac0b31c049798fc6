"""An evaluation item as the audit sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def held_out_items(rows: Sequence[Row]) -> list[AuditedItem]:
    """Held-out rows as items: the last turn is what is asked for."""
    return [
        AuditedItem(
            suite=VALIDATION,
            task="rows",
            id=row.origin,
            prompt=_asked(row),
            answers=(_answer(row),),
            cluster=row.cluster,
        )
        for row in rows
    ]


def _asked(row: Row) -> str:
    label: str | None = getattr(row, "label", None)
    if label is not None:
        return row.text or ""
    return "\n\n".join(message.content for message in row.messages[:-1])


def _answer(row: Row) -> str:
    label: str | None = getattr(row, "label", None)
    if label is not None:
        return label
    return row.text if row.text is not None else row.messages[-1].content
