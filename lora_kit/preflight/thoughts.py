"""Thoughts that the training rows teach, compared with those of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.data.rows import Message, Row
from lora_kit.data.templates import REASONING_END, REASONING_FIELDS, REASONING_TAG, render
from lora_kit.recipe.sections import EvaluationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows that are looked at, spread over all of them.
LOOKED_AT = 1000


@dataclass(frozen=True)
class TaughtThoughts:
    """Answers of the training rows by the thought before them.

    Attributes:
        thoughts: number of answers with a thought.
        empty: number of answers behind an empty thought, of the row or of the chat template.
        none: number of answers without a thought.
    """

    thoughts: int
    empty: int
    none: int

    @property
    def sentence(self) -> str:
        """Numbers in words; empty if neither rows nor template know thoughts."""
        if not self.thoughts + self.empty:
            return ""
        return (
            f"{self.thoughts:,} answers with a thought, {self.empty:,} behind an empty one, "
            f"{self.none:,} without"
        )

    def warning(self, spec: EvaluationSpec) -> str:
        """Return where training and evaluation differ; empty where they do not."""
        answers = self.thoughts + self.empty + self.none
        if spec.thinking and not self.thoughts:
            return (
                "evaluation.thinking: the model is judged with thoughts, and no training row has "
                "one; it learns to answer at once. Train on rows with thoughts, or set "
                "evaluation.thinking: false"
            )
        if not spec.thinking and self.thoughts > answers / 2:
            return (
                f"evaluation.thinking: {self.thoughts:,} of {answers:,} training answers have a "
                "thought, and the model is judged without. Set evaluation.thinking: true, or train "
                "on answers alone"
            )
        return ""


def taught_thoughts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> TaughtThoughts:
    """Count thoughts before the last answers of training rows, of at most 1,000 rows.

    Args:
        rows: training rows.
        tokenizer: tokenizer of the backbone.
    """
    step = max(1, len(rows) // LOOKED_AT)
    kinds = [_kind(rows[n], tokenizer) for n in range(0, len(rows), step)]
    return TaughtThoughts(*(kinds.count(kind) for kind in ("thoughts", "empty", "none")))


def _kind(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    if not row.has_answer or not tokenizer.chat_template:
        return "other"
    *turns, answer = row.messages
    thought = _thought(answer)
    if thought is None:
        # Templates of thinking models write an empty thought where none is asked for.
        prompt = render(turns, tokenizer, True, row.tools) if turns else ""
        return "empty" if REASONING_TAG in prompt else "none"
    return "thoughts" if thought.strip() else "empty"


def _thought(answer: Message) -> str | None:
    """Return the thought of an answer; `None` without one."""
    if REASONING_TAG in answer.content:
        return answer.content.partition(REASONING_TAG)[2].partition(REASONING_END)[0]
    extra = dict(answer.extra)
    return next((str(extra[name]) for name in REASONING_FIELDS if name in extra), None)
