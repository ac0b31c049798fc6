"""Tokens of a text that is given as words: the first token of each word."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WordTokens:
    """Tokens of one text.

    Attributes:
        input_ids: token ids with the tokenizer's own special tokens.
        starts: for each word, the position of its first token; `None` for a word without a token,
            such as one beyond the limit.
        truncated: true if the text was longer than the limit.
    """

    input_ids: tuple[int, ...]
    starts: tuple[int | None, ...]
    truncated: bool


def encode_words(
    texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[WordTokens]:
    """Tokenize texts, each the words joined by spaces, and find the first token of each word.

    The tokens are those of the joined text, which a program that serves the head reads. With
    `is_split_into_words`, byte-level tokenizers such as that of SmolLM2 have no space before a
    word, and the words are other tokens than those that the backbone was trained on.

    Args:
        texts: words of each text, none empty.
        tokenizer: fast tokenizer of the backbone.
        max_length: maximum tokens; texts are truncated as in `encode_texts`.

    Raises:
        BackboneError: if the tokenizer does not tell where its tokens are in the text.
    """
    if not tokenizer.is_fast:
        raise BackboneError(
            "backbone.model: the tags of words need a fast tokenizer, which tells the place of each"
            f" token (got {type(tokenizer).__name__}). Fix: choose a backbone with a tokenizer.json"
        )
    joined = [" ".join(words) for words in texts]
    complete = tokenizer(joined, verbose=False)["input_ids"]
    short = tokenizer(
        joined,
        truncation=True,
        max_length=min(max_length, tokenizer.model_max_length),
        return_offsets_mapping=True,
    )
    rows = zip(joined, texts, complete, short["input_ids"], short["offset_mapping"], strict=True)
    return [
        WordTokens(tuple(ids), _starts(text, words, offsets), len(every) > len(ids))
        for text, words, every, ids, offsets in rows
    ]


def _starts(
    text: str, words: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> tuple[int | None, ...]:
    begins = [0, *accumulate(len(word) + 1 for word in words[:-1])]
    starts: list[int | None] = [None] * len(words)
    for position, (start, end) in enumerate(offsets):
        # The token of a word may begin with the space before it; special tokens are empty.
        blank = end - start - len(text[start:end].lstrip())
        if start + blank < end:
            word = bisect_right(begins, start + blank) - 1
            starts[word] = position if starts[word] is None else starts[word]
    return tuple(starts)
