"""Conversations as a head reads them: all of it, up to the end of the assistant's last turn.

`labels` are -100 but for the answer's tokens, though a head predicts none of them: so a row of
which no token of the answer is left is dropped as elsewhere, and a plan marks the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_kit.data.drafts import draft
from lora_kit.data.rows import Row
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.data.tokenization import (
    IGNORED,
    Example,
    end_of_turn,
    tokenize_prompt,
    tokenize_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_answered(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    """Tokenize rows, one example each.

    With a chat template as everywhere here, the end of the turn with it; of an answer of no words,
    which a policy may give, that alone stands behind the prompt. Without a template, an encoder
    has no token that ends a text: prompt and answer stand on lines of their own, between the
    tokenizer's own special tokens, and are cut before the last of those.

    Args:
        rows: whose last turn is the assistant's.
        tokenizer: of the backbone.
        max_length: most tokens; never more than the model has places.

    Raises:
        DataError: if a row holds control tokens, or the backbone cannot carry its turns.
    """
    most = min(max_length, tokenizer.model_max_length)
    control = control_tokens(tokenizer)
    for row in rows:
        refuse_control_tokens(row, control)
    if tokenizer.chat_template:
        spoken = [row for row in rows if _is_said(row)]
        said = iter(tokenize_rows(spoken, tokenizer, most, "last"))
        return [next(said)[0] if _is_said(row) else _silent(row, tokenizer, most) for row in rows]
    drafts = [draft(row, tokenizer, "last") for row in rows]
    texts = [one.text for one in drafts]
    whole = tokenizer(texts, verbose=False)["input_ids"]
    cut = tokenizer(texts, truncation=True, max_length=most, return_offsets_mapping=True)
    found = []
    for number, (row, one) in enumerate(zip(rows, drafts, strict=True)):
        assert one.spans is not None  # the answer's
        begins = one.spans[0].start
        ids, offsets = cut["input_ids"][number], cut["offset_mapping"][number]
        # A special token has an offset of no width.
        labels = [
            token if last > max(begins, first) else IGNORED
            for token, (first, last) in zip(ids, offsets, strict=True)
        ]
        is_cut = len(whole[number]) > len(ids)
        found.append(Example(tuple(ids), tuple(labels), is_cut, row.origin, row.cluster))
    return found


def _is_said(row: Row) -> bool:
    answer = row.messages[-1]
    return bool(answer.content.strip() or answer.tool_calls or answer.extra)


def _silent(row: Row, tokenizer: PreTrainedTokenizerBase, most: int) -> Example:
    """The prompt and the end of the turn."""
    prompt, end = tokenize_prompt(row.messages[:-1], tokenizer), end_of_turn(tokenizer)
    ids, labels = (*prompt, end), (*[IGNORED] * len(prompt), end)
    return Example(ids[:most], labels[:most], len(ids) > most, row.origin, row.cluster)
