"""Exact and near duplicates among training rows.

Near duplicates are found by MinHash (Broder 1997) over 5-grams of words, as in Lee et al. 2021
(arXiv:2107.06499): two rows are near duplicates if the Jaccard similarity of their 5-grams,
estimated from 60 hashes of 16 bits, is at least 0.8. Candidates come from 12 bands of 5 hashes,
which select a pair of similarity s with probability 1 - (1 - s^5)^12: 0.99 at 0.8. Including the
error of the estimate (standard deviation 0.05), a pair of similarity 0.9 is found with probability
0.99, of 0.8 with about 1/2, of 0.7 with 1/15, of 0.6 hardly ever. Rows of fewer than five words are
compared for exact duplicates only. Memory is 128 bytes per row.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.audit.findings import EXAMPLES, DuplicatePair, Duplicates
from lora_kit.data.audit.words import HashedWords, Hashes, ngrams
from lora_kit.data.rows import Row

NGRAM_WORDS = 5
"""Words per n-gram."""
SIMILARITY = 0.8
"""Minimum Jaccard similarity of near duplicates."""
BANDS, BAND = 12, 5
# Multiply-shift hashing (Dietzfelbinger et al. 1997): an odd factor and a term per hash.
_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(0, 1 << 63, BANDS * BAND, np.uint64) * np.uint64(2) + np.uint64(1)
_TERMS = _RANDOM.integers(0, 1 << 63, BANDS * BAND, np.uint64)
_CHUNK = 65536


class DuplicateSearch:
    """Streaming search for duplicates that holds only hashes of the rows."""

    def __init__(self) -> None:
        self._texts = array("q")
        self._signatures: list[NDArray[np.uint16]] = []
        self._signed: list[NDArray[np.int64]] = []

    def update(self, texts: Sequence[tuple[str, ...]], block: Sequence[HashedWords]) -> None:
        """Add a block of rows.

        Args:
            texts: texts of each row (see `row_texts`).
            block: hashed words of each row.
        """
        first = len(self._texts)
        self._texts.extend(
            hash(tuple(" ".join(part.casefold().split()) for part in parts)) for parts in texts
        )
        long = [n for n, words in enumerate(block) if len(words.hashes) >= NGRAM_WORDS]
        if long:
            self._signatures.append(_signatures([block[n].hashes for n in long]))
            self._signed.append(np.array(long, np.int64) + first)

    def result(self, rows: Sequence[Row]) -> Duplicates:
        """Count the rows that duplicate an earlier row, and name the first of them."""
        texts = np.array(self._texts, np.int64)
        _, first, group = np.unique(texts, return_index=True, return_inverse=True)
        numbers = np.arange(len(texts))
        exact = np.flatnonzero(first[group] != numbers)
        earlier, similarity = self._near(np.isin(numbers, exact))
        near = np.flatnonzero(earlier >= 0)
        examples = [(int(n), int(first[group[n]]), 1.0) for n in exact[:EXAMPLES]]
        examples += [(int(n), int(earlier[n]), float(similarity[n])) for n in near[:EXAMPLES]]
        return Duplicates(
            rows=len(texts),
            exact=len(exact),
            near=len(near),
            examples=tuple(
                DuplicatePair(rows[n].origin, rows[m].origin, s) for n, m, s in examples
            ),
        )

    def groups(self) -> NDArray[np.int64]:
        """Return the group of each row, (rows,) int64: rows and their duplicates share one."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        texts = np.array(self._texts, np.int64)
        _, first, group = np.unique(texts, return_index=True, return_inverse=True)
        numbers = np.arange(len(texts))
        earlier, _ = self._near(np.isin(numbers, np.flatnonzero(first[group] != numbers)))
        near = np.flatnonzero(earlier >= 0)
        ends = np.concatenate([numbers, near]), np.concatenate([first[group], earlier[near]])
        links = coo_array((np.ones(len(ends[0])), ends), shape=(len(texts), len(texts)))
        return np.asarray(connected_components(links, directed=False)[1], np.int64)

    def _near(self, excluded: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find an earlier near duplicate of each row.

        Args:
            excluded: (rows,) bool, rows left out of the search.

        Returns:
            (rows,) int64, index of the earlier row or -1; (rows,) float64, estimated similarity.
        """
        earlier = np.full(len(excluded), -1)
        similarity = np.zeros(len(excluded))
        if not self._signed:
            return earlier, similarity
        signed = np.concatenate(self._signed)
        included = np.flatnonzero(~excluded[signed])
        signed, signatures = signed[included], np.concatenate(self._signatures)[included]
        for band in range(BANDS):
            for one, other in _candidates(signatures[:, band * BAND : (band + 1) * BAND]):
                new = earlier[signed[other]] < 0
                one, other = one[new], other[new]
                # The share of equal hashes estimates the Jaccard similarity.
                shares = (signatures[one] == signatures[other]).mean(axis=1)
                near = shares >= SIMILARITY
                earlier[signed[other[near]]] = signed[one[near]]
                similarity[signed[other[near]]] = shares[near]
        return earlier, similarity


def _signatures(rows: Sequence[Hashes]) -> NDArray[np.uint16]:
    """Compute the MinHash signatures of rows.

    Args:
        rows: hashed words of each row, at least `NGRAM_WORDS` of them.

    Returns:
        (rows, hashes) uint16: the minimum of each hash over a row's n-grams.
    """
    every = [deque(ngrams(hashes, NGRAM_WORDS), maxlen=1)[0][1] for hashes in rows]
    starts = np.cumsum([0, *(len(one) for one in every[:-1])])
    flat = np.concatenate(every)
    smallest = np.empty((len(_FACTORS), len(rows)), np.uint64)
    for n, (factor, term) in enumerate(zip(_FACTORS, _TERMS, strict=True)):
        smallest[n] = np.minimum.reduceat(flat * factor + term >> np.uint64(16), starts)
    # The low bits are stored: the high bits of a minimum are mostly 0 (b-bit MinHash, Li & König
    # 2010).
    return (smallest & np.uint64(0xFFFF)).T.astype(np.uint16)


def _candidates(
    band: NDArray[np.uint16],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of rows with an equal band: each row with the previous and with the first one.

    Args:
        band: (rows, hashes) uint16.

    Yields:
        (pairs,) int64 earlier rows, (pairs,) int64 later rows; within one yielded pair of arrays,
        a row is the later one at most once.
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
