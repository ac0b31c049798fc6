"""`retention.self_distillation`: train on answers that the base rewrote.

Self-distillation (Yang et al. 2024, arXiv:2402.13669): given the reference answer, the base writes
the answer again. A rewritten answer is likelier under the base than the reference, so learning it
changes the base less. A rewritten answer whose content differs is discarded, and the reference is
learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_kit.data.rows import Message, Row
from lora_kit.modeling.generation import Generator
from lora_kit.modeling.rewriting import Request, Similarity, rewrite
from lora_kit.recipe.retention import SelfDistillationSpec

PROMPT = (
    "{question}\n\nThis is the correct answer:\n{answer}\n\nWrite this answer again in your own "
    "words, and nothing else. Keep its meaning, its form and its length."
)


@dataclass(frozen=True)
class RewrittenAnswer:
    """Answer of a row, rewritten by the base.

    Attributes:
        origin: origin of the row.
        reference: the row's own answer.
        written: rewritten answer; `None` if generation did not end within the token limit.
        similarity: chrF of the rewritten answer against the reference, 0 to 100.
        taken: true if the rewritten answer is learned in place of the reference.
    """

    origin: str
    reference: str
    written: str | None
    similarity: float
    taken: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def rewrite_answers(
    generator: Generator,
    rows: Sequence[Row],
    spec: SelfDistillationSpec,
    similarity: Similarity,
    max_length: int,
) -> list[RewrittenAnswer]:
    """Rewrite the answers of rows that end with one, greedily.

    Args:
        generator: generator of the base.
        rows: training rows; texts and rows with tools are skipped.
        spec: smallest similarity of an answer that is taken.
        similarity: chrF of a text against references, 0 to 100.
        max_length: largest number of prompt tokens; longer rows are skipped.

    Returns:
        One entry for each row that was not skipped.
    """
    asked = [
        row for row in rows if row.has_answer and not row.tools and not row.messages[-1].tool_calls
    ]
    found = rewrite(
        generator, [_request(row) for row in asked], spec.similarity, similarity, max_length
    )
    return [
        RewrittenAnswer(
            row.origin, row.messages[-1].content, one.text, one.similarity, one.is_faithful
        )
        for row, one in zip(asked, found, strict=True)
        if one is not None
    ]


def _request(row: Row) -> Request:
    *before, question, answer = row.messages
    text = PROMPT.format(question=question.content, answer=answer.content)
    return Request((*before, Message("user", text)), answer.content)


def replace_answers(answers: Sequence[RewrittenAnswer]) -> Callable[[Row], Row]:
    """Return a function that replaces a row's answer with the rewritten one that was taken."""
    taken = {(one.origin, one.reference): str(one.written) for one in answers if one.taken}

    def replace(row: Row) -> Row:
        answer = taken.get((row.origin, row.messages[-1].content)) if row.has_answer else None
        if answer is None:
            return row
        last = dataclasses.replace(row.messages[-1], content=answer)
        return dataclasses.replace(row, messages=(*row.messages[:-1], last))

    return replace
