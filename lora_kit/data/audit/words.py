"""Texts as words, words as hashes: what two texts are compared by.

A word is a run of letters and digits, case aside; a character of a script that is written without
spaces; or an operator beside a number, so that `2 + 2` and `2 - 2` are not the same. Punctuation
and markup are none, as in the decontamination of GPT-3 (Brown et al. 2020, arXiv:2005.14165,
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

# Thai, Lao, Burmese, Khmer, Japanese, Chinese: written without spaces.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_OPERATOR = "[-+*/=<>^%]"
_WORD = re.compile(
    rf"\n|[^\W{_ALONE}]+|[{_ALONE}]"
    rf"|(?<=\d){_OPERATOR}|(?<=\d ){_OPERATOR}|{_OPERATOR}(?= ?\d)"
)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_KNOWN_WORDS = 1 << 16


@dataclass(frozen=True)
class Words:
    """A text's words.

    Attributes:
        hashes: (words,) uint64.
        borders: (borders,) int64, ascending: where a turn or a line begins, and the end.
    """

    hashes: Hashes
    borders: NDArray[np.int64]

    def is_border(self, position: int) -> bool:
        """Whether a turn or a line begins or ends before this word."""
        place = int(np.searchsorted(self.borders, position))
        return place < len(self.borders) and bool(self.borders[place] == position)


def parts_of(row: Row) -> tuple[str, ...]:
    """All that a row says: its turns or its text, and its label where that is no turn of it."""
    turns = tuple(message.content for message in (*row.messages, *row.rejected))
    own = turns if row.text is None else (*turns, row.text)
    label = label_of(row)
    return own if label is None or own[-1:] == (label,) else (*own, label)


def label_of(row: Row) -> str | None:
    """The class of a row that has one."""
    label: str | None = getattr(row, "label", None)
    return label


def words_of(parts: Sequence[str]) -> Words:
    """The words of turns or texts; each begins a line of its own."""
    found = _WORD.findall("\n".join(parts).casefold())
    values = np.fromiter(map(_hash, found), np.uint64, len(found))
    line = values == _NEW_LINE
    starts = np.flatnonzero(line)
    hashes = values[~line]
    borders = np.empty(len(starts) + 2, np.int64)
    borders[0], borders[-1] = 0, len(hashes)
    borders[1:-1] = starts - np.arange(len(starts))
    return Words(hashes, borders)


@lru_cache(_KNOWN_WORDS)
def _hash(word: str) -> int:
    # Python's own is another one in each process, and so would the estimates be.
    encoded = word.encode(errors="surrogatepass")
    return int.from_bytes(blake2b(encoded, digest_size=8).digest())


_NEW_LINE = np.uint64(_hash("\n"))


def runs(hashes: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """For each length up to `longest`, the hashes of all runs of so many words, in their order.

    Args:
        hashes: (words,) uint64.
        longest: words of the longest run.

    Yields:
        (length, (words - length + 1,) uint64); a run's hash tells its length too.
    """
    current = hashes
    for length in range(1, min(longest, len(hashes)) + 1):
        if length > 1:
            # A polynomial, modulo 2^64.
            current = current[:-1] * _BASE + hashes[length - 1 :]
        yield length, current + np.uint64(length)


def runs_of(hashes: Hashes, length: int) -> Hashes:
    """The different runs of so many words; of a shorter text, all of it as one."""
    longest = deque(runs(hashes, length), maxlen=1)
    return np.unique(longest[0][1]) if longest else np.empty(0, np.uint64)


def places(hashes: Hashes, wanted: Hashes) -> NDArray[np.int64]:
    """Where a run of words begins, ascending.

    Args:
        hashes: (words,) uint64.
        wanted: (run,) uint64, not empty.
    """
    starts = np.flatnonzero(hashes[: max(len(hashes) - len(wanted) + 1, 0)] == wanted[0])
    for offset in range(1, len(wanted)):
        if not len(starts):
            break
        starts = starts[hashes[starts + offset] == wanted[offset]]
    return starts
