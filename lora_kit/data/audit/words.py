"""Hashed words and word n-grams, for comparing texts.

A word is a sequence of letters and digits, regardless of case; a character of a script written
without spaces; or an operator next to a number, so that `2 + 2` and `2 - 2` differ. Punctuation
and markup are ignored, as in the decontamination of GPT-3 (Brown et al. 2020, arXiv:2005.14165,
appendix C).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.rows import Row

Hashes = NDArray[np.uint64]

# Scripts written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_OPERATOR = "[-+*/=<>^%]"
_WORD = re.compile(
    rf"\n|[^\W{_UNSPACED}]+|[{_UNSPACED}]"
    rf"|(?<=\d){_OPERATOR}|(?<=\d ){_OPERATOR}|{_OPERATOR}(?= ?\d)"
)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_KNOWN_WORDS = 1 << 16


@dataclass(frozen=True)
class HashedWords:
    """Hashed words of a row.

    Attributes:
        hashes: (words,) uint64, one hash per word.
        borders: (borders,) int64, ascending, first word of each turn or line, and the number of
            words.
    """

    hashes: Hashes
    borders: NDArray[np.int64]

    def is_border(self, position: int) -> bool:
        """Return True if a turn or a line starts or ends before this word."""
        place = int(np.searchsorted(self.borders, position))
        return place < len(self.borders) and bool(self.borders[place] == position)


def row_texts(row: Row) -> tuple[str, ...]:
    """Return all texts of a row: turns or text, and the label unless it is the last turn."""
    turns = tuple(message.content for message in (*row.messages, *row.rejected))
    texts = turns if row.text is None else (*turns, row.text)
    return texts if row.label is None or texts[-1:] == (row.label,) else (*texts, row.label)


def hash_words(parts: Sequence[str]) -> HashedWords:
    """Split texts into words and hash them; each text starts on a new line."""
    words = _WORD.findall("\n".join(parts).casefold())
    values = np.fromiter(map(_hash, words), np.uint64, len(words))
    line = values == _NEW_LINE
    starts = np.flatnonzero(line)
    hashes = values[~line]
    borders = np.empty(len(starts) + 2, np.int64)
    borders[0], borders[-1] = 0, len(hashes)
    borders[1:-1] = starts - np.arange(len(starts))
    return HashedWords(hashes, borders)


@lru_cache(_KNOWN_WORDS)
def _hash(word: str) -> int:
    # Python's own hash of a string differs between processes, and would change the estimates.
    encoded = word.encode(errors="surrogatepass")
    return int.from_bytes(blake2b(encoded, digest_size=8).digest())


_NEW_LINE = np.uint64(_hash("\n"))


def ngrams(hashes: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """Yield the hashes of all n-grams, for each n up to `longest`.

    Args:
        hashes: (words,) uint64.
        longest: maximum n.

    Yields:
        n, and (words - n + 1,) uint64 with the n-grams in order; hashes of different n differ.
    """
    current = hashes
    for length in range(1, min(longest, len(hashes)) + 1):
        if length > 1:
            # Polynomial hash modulo 2^64.
            current = current[:-1] * _BASE + hashes[length - 1 :]
        yield length, current + np.uint64(length)


def unique_ngrams(hashes: Hashes, length: int) -> Hashes:
    """Return the distinct n-grams of `length` words; a shorter text is one n-gram.

    Args:
        hashes: (words,) uint64.
        length: words per n-gram.

    Returns:
        (ngrams,) uint64, sorted.
    """
    longest = deque(ngrams(hashes, length), maxlen=1)
    return np.unique(longest[0][1]) if longest else np.empty(0, np.uint64)


def find_sequence(hashes: Hashes, sequence: Hashes) -> NDArray[np.int64]:
    """Return all positions at which a sequence of words starts, ascending.

    Args:
        hashes: (words,) uint64, the words to search.
        sequence: (length,) uint64, the sequence, not empty.

    Returns:
        (positions,) int64.
    """
    starts = np.flatnonzero(hashes[: max(len(hashes) - len(sequence) + 1, 0)] == sequence[0])
    for offset in range(1, len(sequence)):
        if not len(starts):
            break
        starts = starts[hashes[starts + offset] == sequence[offset]]
    return starts
