"""`retention.self_distillation`: train on answers that the base rewrote.

Self-distillation (Yang et al. 2024, arXiv:2402.13669): given the reference answer, the base writes
the answer again. A rewritten answer is likelier under the base than the reference, so learning it
changes the base less. A rewritten answer whose content differs is discarded, and the reference is
learned.
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

PROMPT = (
    "{question}\n\nThis is the correct answer:\n{answer}\n\nWrite this answer again in your own "
    "words, and nothing else. Keep its meaning, its form and its length."
)
# A rewritten answer may have twice the reference's tokens plus this many.
SLACK = 16
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


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
    similarity: Callable[[str, Sequence[str]], float | None],
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
    tokenizer = generator.backbone.tokenizer
    control = control_tokens(tokenizer)
    requests: list[tuple[Row, list[int], int]] = []
    for row in rows:
        if not row.has_answer or row.tools or row.messages[-1].tool_calls:
            continue
        *before, question, answer = row.messages
        text = PROMPT.format(question=question.content, answer=answer.content)
        prompt = tokenize_prompt([*before, Message("user", text)], tokenizer)
        length = len(tokenizer(answer.content)["input_ids"])
        if len(prompt) <= max_length:
            requests.append((row, prompt, 2 * length + SLACK))
    prompts = [prompt for _, prompt, _ in requests]
    texts = generator.texts(prompts, [limit for *_, limit in requests], sampled=False)
    answers = []
    for (row, *_), generated in zip(requests, texts, strict=True):
        reference, text = row.messages[-1].content, (generated or "").strip()
        score = similarity(text, [reference]) if text else None
        taken = (
            text != ""
            and (score or 0.0) >= spec.similarity
            and sorted(_NUMBER.findall(text)) == sorted(_NUMBER.findall(reference))
            and not (control and control.search(text))
        )
        answers.append(RewrittenAnswer(row.origin, reference, text or None, score or 0.0, taken))
    return answers


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
