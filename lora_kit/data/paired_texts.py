"""Tokenized texts of pairs and triplets, for embeddings: one example a text.

Every token of an example is labelled, so that code which counts supervised tokens counts those
that are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_kit.data.formats import FORMATS, NEEDS
from lora_kit.data.labelled import encode_texts
from lora_kit.data.rows import Message, Row
from lora_kit.data.supervision import Example
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.recipe.objective import FORMATS_OF
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_paired_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[Example, ...]]:
    """Tokenize the texts of pairs and triplets: anchor, positive and, if there is one, negative.

    Args:
        rows: pairs and triplets.
        tokenizer: tokenizer of the backbone, which adds its own special tokens to each text.
        max_length: maximum tokens per text.

    Returns:
        Two or three examples for each row.

    Raises:
        DataError: if a row is neither, or holds control tokens.
    """
    control = control_tokens(tokenizer)
    require_paired(rows)
    for row in rows:
        refuse_control_tokens(dataclasses.replace(row, messages=_texts(row)), control)
    texts = [message.content for row in rows for message in _texts(row)]
    encoded = iter(encode_texts(texts, tokenizer, max_length))
    return [
        tuple(
            Example(ids, ids, truncated, row.origin, row.cluster)
            for ids, truncated in (next(encoded) for _ in _texts(row))
        )
        for row in rows
    ]


def _texts(row: Row) -> tuple[Message, ...]:
    return (*row.messages, *row.rejected)


def require_paired(rows: Sequence[Row]) -> None:
    """Refuse rows that are neither pairs nor triplets.

    Raises:
        DataError: naming the first such row.
    """
    needed = FORMATS_OF["embedding"]
    for row in rows:
        if row.format not in needed:
            raise DataError(
                f"{row.origin}: training.objective: {NEEDS[needed[0]]} (got format "
                f"{row.format or 'messages'}). Fix: give rows of "
                f"{' or '.join(FORMATS[name].example for name in needed)}, or map their columns"
            )
