"""Which training rows stand there before, word for word or nearly so.

Near duplicates by MinHash (Broder 1997) over runs of five words, as Lee et al. 2021
(arXiv:2107.06499) take them: two rows are near where the Jaccard similarity of their runs is 0.8 at
least, by an estimate from 60 hashes of 16 bits. Candidates come from 12 bands of 5 hashes, which
let through a pair of similarity s with probability 1 - (1 - s^5)^12: 0.99 at 0.8. With the
estimate's own error (a deviation of 0.05) a pair of similarity 0.9 is found with probability 0.99,
one of 0.8 about every second time, one of 0.7 in one of fifteen, one of 0.6 hardly ever. Rows of
less than five words are compared word for word only. It takes 128 bytes a row.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.audit.findings import EXAMPLES, Duplicates, Twin
from lora_kit.data.audit.words import Hashes, Words, runs
from lora_kit.data.rows import Row

RUN = 5
"""Words of a run."""
SIMILARITY = 0.8
"""Jaccard similarity from which rows are near duplicates."""
BANDS, BAND = 12, 5
# Multiply and shift (Dietzfelbinger et al. 1997): an odd number each, and what is added.
_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(0, 1 << 63, BANDS * BAND, np.uint64) * np.uint64(2) + np.uint64(1)
_TERMS = _RANDOM.integers(0, 1 << 63, BANDS * BAND, np.uint64)
_CHUNK = 65536


class TwinSearch:
    """Hashes of the rows as they go by."""

    def __init__(self) -> None:
        self._texts = array("q")
        self._signatures: list[NDArray[np.uint16]] = []
        self._signed: list[NDArray[np.int64]] = []

    def look(self, texts: Sequence[tuple[str, ...]], block: Sequence[Words]) -> None:
        """Take in rows.

        Args:
            texts: all parts of each row.
            block: the rows' words.
        """
        first = len(self._texts)
        self._texts.extend(
            hash(tuple(" ".join(part.casefold().split()) for part in parts)) for parts in texts
        )
        long = [n for n, words in enumerate(block) if len(words.hashes) >= RUN]
        if long:
            self._signatures.append(_signatures([block[n].hashes for n in long]))
            self._signed.append(np.array(long, np.int64) + first)

    def result(self, rows: Sequence[Row]) -> Duplicates:
        """How many rows stand there before, and where the first of them are."""
        texts = np.array(self._texts, np.int64)
        _, first, group = np.unique(texts, return_index=True, return_inverse=True)
        numbers = np.arange(len(texts))
        again = np.flatnonzero(first[group] != numbers)
        earlier, likeness = self._near(np.isin(numbers, again))
        near = np.flatnonzero(earlier >= 0)
        examples = [(int(n), int(first[group[n]]), 1.0) for n in again[:EXAMPLES]]
        examples += [(int(n), int(earlier[n]), float(likeness[n])) for n in near[:EXAMPLES]]
        return Duplicates(
            rows=len(texts),
            exact=len(again),
            near=len(near),
            examples=tuple(Twin(rows[n].origin, rows[m].origin, s) for n, m, s in examples),
        )

    def _near(self, left_out: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each row an earlier one that is near, or -1, and how near it is."""
        earlier = np.full(len(left_out), -1)
        likeness = np.zeros(len(left_out))
        if not self._signed:
            return earlier, likeness
        signed = np.concatenate(self._signed)
        kept = np.flatnonzero(~left_out[signed])
        signed, signatures = signed[kept], np.concatenate(self._signatures)[kept]
        for band in range(BANDS):
            for one, other in _candidates(signatures[:, band * BAND : (band + 1) * BAND]):
                new = earlier[signed[other]] < 0
                one, other = one[new], other[new]
                same = _agreement(signatures, one, other)
                near = same >= SIMILARITY
                earlier[signed[other[near]]] = signed[one[near]]
                likeness[signed[other[near]]] = same[near]
        return earlier, likeness


def _signatures(rows: Sequence[Hashes]) -> NDArray[np.uint16]:
    """The smallest of each hash over a row's runs.

    Args:
        rows: the words of each, at least as many as a run has.

    Returns:
        (rows, hashes) uint16.
    """
    every = [deque(runs(hashes, RUN), maxlen=1)[0][1] for hashes in rows]
    starts = np.cumsum([0, *(len(one) for one in every[:-1])])
    flat = np.concatenate(every)
    smallest = np.empty((len(_FACTORS), len(rows)), np.uint64)
    for n, (factor, term) in enumerate(zip(_FACTORS, _TERMS, strict=True)):
        smallest[n] = np.minimum.reduceat(flat * factor + term >> np.uint64(16), starts)
    # The high bits of a minimum say little: they are mostly 0 (b-bit MinHash, Li & König 2010).
    return (smallest & np.uint64(0xFFFF)).T.astype(np.uint16)


def _candidates(
    band: NDArray[np.uint16],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows with the same band: each with the one before it, and with the first of all.

    Args:
        band: (rows, hashes) uint16.

    Yields:
        (pairs,) the earlier rows, (pairs,) the later ones; a row is the later one once at most.
    """
    key = np.zeros(len(band), np.uint64)
    for column in band.T:
        key = key * np.uint64(0x9E3779B97F4A7C15) + column
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    same = np.append(False, ordered[1:] == ordered[:-1])
    start = np.maximum.accumulate(np.where(same, 0, np.arange(len(key))))
    later = np.flatnonzero(same)
    for before in (later - 1, start[later]):
        for begin in range(0, len(later), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            yield order[before[part]], order[later[part]]


def _agreement(
    signatures: NDArray[np.uint16], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The share of the hashes that two rows have in common: their estimated similarity."""
    shares: NDArray[np.float64] = (signatures[one] == signatures[other]).mean(axis=1)
    return shares
