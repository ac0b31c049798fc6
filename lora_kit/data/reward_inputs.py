"""Tokenized inputs of a reward model: a conversation up to the end of the assistant's last turn.

A scoring head predicts no tokens. `labels` still mark the answer's tokens (-100 elsewhere), so that
a row whose answer is truncated away entirely is dropped as in other objectives, and a plan can
highlight the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_kit.data.rendering import render_row
from lora_kit.data.rows import Row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.data.tokenization import end_of_turn_id, tokenize_prompt, tokenize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_reward_inputs(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    """Tokenize conversations for a scoring head, one example per row.

    With a chat template, each example ends with the end-of-turn token, as in all other training.
    An empty answer, which a policy may generate, consists of that token alone. Without a chat
    template (encoders), prompt and answer are on separate lines between the tokenizer's own
    special tokens, and the text is truncated before the last special token.

    Args:
        rows: conversations whose last turn is the assistant's.
        tokenizer: tokenizer of the backbone.
        max_length: maximum tokens per example; also capped by the tokenizer's
            `model_max_length`.

    Raises:
        DataError: if a row holds control tokens, or the backbone does not support its turns.
    """
    max_tokens = min(max_length, tokenizer.model_max_length)
    control = control_tokens(tokenizer)
    for row in rows:
        refuse_control_tokens(row, control)
    if tokenizer.chat_template:
        answered = [row for row in rows if not _has_empty_answer(row)]
        encoded = iter(tokenize_rows(answered, tokenizer, max_tokens, "last"))
        return [
            _encode_empty_answer(row, tokenizer, max_tokens)
            if _has_empty_answer(row)
            else next(encoded)[0]
            for row in rows
        ]
    return _encode_plain_texts(rows, tokenizer, max_tokens)


def _encode_plain_texts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Example]:
    """Tokenize conversations without a chat template."""
    rendered = [render_row(row, tokenizer, "last") for row in rows]
    texts = [one.text for one in rendered]
    complete = tokenizer(texts, verbose=False)["input_ids"]
    truncated = tokenizer(
        texts, truncation=True, max_length=max_tokens, return_offsets_mapping=True
    )
    examples = []
    for number, (row, one) in enumerate(zip(rows, rendered, strict=True)):
        assert one.spans is not None  # the span of the answer
        answer_start = one.spans[0].start
        ids, offsets = truncated["input_ids"][number], truncated["offset_mapping"][number]
        # A special token has an offset of width zero, so that the condition excludes it.
        labels = [
            token if end > max(answer_start, start) else IGNORE_INDEX
            for token, (start, end) in zip(ids, offsets, strict=True)
        ]
        is_truncated = len(complete[number]) > len(ids)
        examples.append(Example(tuple(ids), tuple(labels), is_truncated, row.origin, row.cluster))
    return examples


def _has_empty_answer(row: Row) -> bool:
    answer = row.messages[-1]
    return not (answer.content.strip() or answer.tool_calls or answer.extra)


def _encode_empty_answer(row: Row, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Example:
    """Tokenize the prompt and append the end-of-turn token."""
    prompt, end = tokenize_prompt(row.messages[:-1], tokenizer), end_of_turn_id(tokenizer)
    ids, labels = (*prompt, end), (*[IGNORE_INDEX] * len(prompt), end)
    return Example(
        ids[:max_tokens], labels[:max_tokens], len(ids) > max_tokens, row.origin, row.cluster
    )
