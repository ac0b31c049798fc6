"""Texts for a masked language model: special tokens around each, labels on all ordinary tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from lora_kit.data.labelled import encode_texts
from lora_kit.data.rows import Row
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.templates import special_token_ids
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_masked_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int, split: bool
) -> list[list[Example]]:
    """Tokenize texts; the labels are the tokens that may be masked.

    Args:
        rows: rows of texts.
        tokenizer: tokenizer of the backbone.
        max_length: maximum tokens per example, special tokens included.
        split: if true, longer texts are split into several examples instead of truncated.

    Returns:
        The examples of each row.

    Raises:
        DataError: if a row is no text, or `max_length` leaves no room.
    """
    special = special_token_ids(tokenizer)
    texts = []
    for row in rows:
        if row.text is None:
            raise DataError(
                f"{row.origin}: training.objective: mlm reads texts (got a conversation). Fix: "
                'give rows of {"text": "..."}'
            )
        texts.append(row.text)
    size = min(max_length, tokenizer.model_max_length)
    parts = _split(texts, tokenizer, size) if split else _truncated(texts, tokenizer, size)
    return [
        [
            Example(
                input_ids=ids,
                labels=ordinary_labels(ids, special),
                truncated=is_truncated,
                origin=row.origin,
                cluster=row.cluster,
            )
            for ids, is_truncated in of_row
        ]
        for row, of_row in zip(rows, parts, strict=True)
    ]


def ordinary_labels(ids: Sequence[int], special: Collection[int]) -> tuple[int, ...]:
    """Return the ids with -100 in place of special tokens, which are never masked."""
    return tuple(IGNORE_INDEX if token in special else token for token in ids)


Parts = list[list[tuple[tuple[int, ...], bool]]]


def _truncated(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int) -> Parts:
    return [[one] for one in encode_texts(texts, tokenizer, size)]


def _split(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int) -> Parts:
    """Return the tokens of each text in parts, each with special tokens of its own."""
    before, after = special_frame(tokenizer)
    room = size - len(before) - len(after)
    if room < 1:
        raise DataError(
            f"data.max_length: no room for a token beside the {len(before) + len(after)} special "
            f"tokens of a text (got {size}). Fix: raise it"
        )
    plain = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [
        [
            ((*before, *ids[start : start + room], *after), False)
            for start in range(0, max(len(ids), 1), room)
        ]
        for ids in plain
    ]


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that a tokenizer puts before and after a text."""
    complete = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = next(n for n in range(len(complete)) if complete[n : n + len(plain)] == plain)
    return tuple(complete[:first]), tuple(complete[first + len(plain) :])
