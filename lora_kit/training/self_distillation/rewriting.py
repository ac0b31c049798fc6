"""`retention.self_distillation`: answers as the base would put them, where it keeps to what they say.

Self-distillation (Yang et al. 2024, arXiv:2402.13669): told the answer, the base writes it again.
What it says itself is near to what it would say, so that learning it moves the base less. An answer
that says something else than the reference is not taken, and the reference is learned.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import control_tokens
from lora_kit.data.tokenization import tokenize_prompt
from lora_kit.modeling.generation import Generator
from lora_kit.recipe.retention import SelfDistillationSpec

ASKED = (
    "{question}\n\nThis is the correct answer:\n{answer}\n\nWrite this answer again in your own "
    "words, and nothing else. Keep its meaning, its form and its length."
)
# Tokens that an answer may grow by, over twice its own length.
SLACK = 16
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Rewritten:
    """A row's answer in the base's words.

    Attributes:
        origin: of the row.
        reference: the answer that the row gives.
        written: what the base made of it; `None` where it came to no end.
        similarity: chrF of the two, 0 to 100.
        taken: whether the base's is learned.
    """

    origin: str
    reference: str
    written: str | None
    similarity: float
    taken: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def rewritten(
    speaker: Generator,
    rows: Sequence[Row],
    spec: SelfDistillationSpec,
    similarity: Callable[[str, Sequence[str]], float | None],
    longest: int,
) -> list[Rewritten]:
    """What the base makes of the answers of rows that end with one.

    Args:
        speaker: the base.
        rows: to train on; texts and rows with tools stay as they are.
        spec: when an answer is taken.
        similarity: chrF of a text to its references, 0 to 100.
        longest: tokens of a prompt at most; a longer row stays as it is.
    """
    tokenizer = speaker.backbone.tokenizer
    control = control_tokens(tokenizer)
    asked: list[tuple[Row, list[int], int]] = []
    for row in rows:
        if not row.answered or row.tools or row.messages[-1].tool_calls:
            continue
        prompt = tokenize_prompt(_asking(row), tokenizer)
        length = len(tokenizer(row.messages[-1].content)["input_ids"])
        if len(prompt) <= longest:
            asked.append((row, prompt, 2 * length + SLACK))
    prompts, most = [prompt for _, prompt, _ in asked], [length for *_, length in asked]
    found = []
    for (row, *_), said in zip(asked, speaker.texts(prompts, most, sampled=False), strict=True):
        reference, text = row.messages[-1].content, (said or "").strip()
        alike = similarity(text, [reference]) if text else None
        taken = (
            text != ""
            and (alike or 0.0) >= spec.similarity
            and sorted(_NUMBER.findall(text)) == sorted(_NUMBER.findall(reference))
            and not (control and control.search(text))
        )
        found.append(Rewritten(row.origin, reference, text or None, alike or 0.0, taken))
    return found


def putting_in(found: Sequence[Rewritten]) -> Callable[[Row], Row]:
    """What gives a row the answer that was taken for it, if one was."""
    taken = {(one.origin, one.reference): str(one.written) for one in found if one.taken}
    return lambda row: _with(row, taken)


def _with(row: Row, taken: dict[tuple[str, str], str]) -> Row:
    answer = taken.get((row.origin, row.messages[-1].content)) if row.answered else None
    if answer is None:
        return row
    last = dataclasses.replace(row.messages[-1], content=answer)
    return dataclasses.replace(row, messages=(*row.messages[:-1], last))


def _asking(row: Row) -> list[Message]:
    *before, question, answer = row.messages
    text = ASKED.format(question=question.content, answer=answer.content)
    return [*before, Message("user", text)]
