"""Search for evaluation items in training rows.

One pass over the rows, a block at a time: each word n-gram of a block is looked up among the
n-grams of all items, and a row with enough n-grams of an item is examined. The search is exact
except for collisions of 64-bit hashes; memory grows with the items, not with the rows.

An item counts as leaked if the row has its answer too ("input-and-label contamination", Dodge et
al. 2021, arXiv:2104.08758); a prompt with another answer or none is counted separately. An item of
fewer than eight words has to start or end at the border of a turn or a line, so that `2 + 2 =` is
not found in every text with a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.audit.findings import EXAMPLES, Leak, Leakage
from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.audit.patterns import COVERAGE, NGRAM_WORDS, SearchPattern, search_patterns
from lora_kit.data.audit.words import HashedWords, Hashes, find_sequence, ngrams, unique_ngrams
from lora_kit.data.rows import Row

# Kinds of a match, the most serious last.
NOTHING, PROMPT, NEAR, EXACT = range(4)
KINDS = {PROMPT: "prompt", NEAR: "near", EXACT: "exact"}
# A prompt of fewer words is no evidence on its own.
_MIN_PROMPT_WORDS = 5
# Mask of a bit table that rules out most n-grams, which are in no item, with one lookup.
_BITS = np.uint64((1 << 22) - 1)


@dataclass(frozen=True)
class _Hits:
    """Pairs of a row and an item with enough common n-grams.

    Attributes:
        rows: (hits,) int64, index of the row in the block.
        items: (hits,) int64, index of the item.
        ngrams: (hits,) int64, number of the item's n-grams in the row.
        last: (hits,) int64, word of the block at which the last of these n-grams first occurs.
    """

    rows: NDArray[np.int64]
    items: NDArray[np.int64]
    ngrams: NDArray[np.int64]
    last: NDArray[np.int64]


class LeakSearch:
    """Streaming search for items, with the most serious match of each item."""

    def __init__(self, items: Sequence[AuditedItem]):
        self.items = items
        self.patterns = search_patterns(items)
        self.worst = np.zeros(len(items), np.int64)
        self.row = np.full(len(items), -1)
        self.coverage = np.zeros(len(items))
        self._sizes = {one.size for one in self.patterns if len(one.words)}
        self._needed = np.array([one.needed for one in self.patterns], np.int64)
        ngrams_of_items = [one.ngrams for one in self.patterns if len(one.words)]
        owners = [n for n, one in enumerate(self.patterns) for _ in one.ngrams if len(one.words)]
        flat = np.concatenate([np.empty(0, np.uint64), *ngrams_of_items])
        order = np.argsort(flat, kind="stable")
        self._owners = np.array(owners, np.int64)[order]
        self._ngrams, self._first = np.unique(flat[order], return_index=True)
        self._count = np.diff(np.append(self._first, len(flat)))
        self._known = np.zeros(int(_BITS) + 1, bool)
        self._known[self._ngrams & _BITS] = True

    def update(self, block: Sequence[HashedWords], first_row: int) -> None:
        """Search a block of rows.

        Args:
            block: hashed words of each row.
            first_row: index of the first row of the block among all rows.
        """
        if not self._sizes or not block:
            return
        starts = np.cumsum([0, *(len(one.hashes) for one in block)])
        hits = self._hits(np.concatenate([one.hashes for one in block]), starts)
        for row, item, count, last in zip(
            hits.rows, hits.items, hits.ngrams, hits.last - starts[hits.rows], strict=True
        ):
            one = self.patterns[item]
            kind = _kind(one, block[row], int(count), int(last))
            coverage = count / len(one.ngrams)
            if (kind, coverage) > (self.worst[item], self.coverage[item]) and kind:
                self.worst[item], self.coverage[item] = kind, coverage
                self.row[item] = first_row + row

    def _hits(self, words: Hashes, starts: NDArray[np.int64]) -> _Hits:
        ngram, positions = self._lookup(words, starts)
        count = self._count[ngram]
        # Repeat each n-gram once per item that has it.
        steps = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        items = self._owners[np.repeat(self._first[ngram], count) + steps]
        positions, ngram = np.repeat(positions, count), np.repeat(ngram, count)
        rows = np.searchsorted(starts, positions, side="right") - 1
        pair = rows * len(self.items) + items
        order = np.lexsort((positions, ngram, pair))
        pair, ngram, positions = pair[order], ngram[order], positions[order]
        # Keep the first position of each n-gram of each pair, then group the positions by pair.
        once = np.ones(len(pair), bool)
        once[1:] = (pair[1:] != pair[:-1]) | (ngram[1:] != ngram[:-1])
        pair, positions = pair[once], positions[once]
        pairs, begin, counts = np.unique(pair, return_index=True, return_counts=True)
        last = np.maximum.reduceat(positions, begin) if len(pairs) else positions
        items = pairs % len(self.items)
        enough = (counts >= self._needed[items]) & (self.worst[items] < EXACT)
        hit = pairs[enough]
        return _Hits(hit // len(self.items), hit % len(self.items), counts[enough], last[enough])

    def _lookup(
        self, words: Hashes, starts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the n-grams of a block that belong to items.

        Args:
            words: (words,) uint64, the words of all rows of the block.
            starts: (rows + 1,) int64, first word of each row, and the total.

        Returns:
            (found,) int64, index of the n-gram; (found,) int64, its first word in the block.
        """
        row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        numbers, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for size, every in ngrams(words, max(self._sizes)):
            if size not in self._sizes:
                continue
            maybe = np.flatnonzero(self._known[every & _BITS])
            maybe = maybe[row[maybe] == row[maybe + size - 1]]
            number = np.searchsorted(self._ngrams, every[maybe])
            number = np.minimum(number, len(self._ngrams) - 1)
            same = self._ngrams[number] == every[maybe]
            numbers.append(number[same])
            positions.append(maybe[same])
        return np.concatenate(numbers), np.concatenate(positions)

    def result(self, rows: Sequence[Row]) -> tuple[Leakage, ...]:
        """Return the matches per task, in the order of the items."""
        by_task: dict[tuple[str, str], list[int]] = {}
        for number, item in enumerate(self.items):
            by_task.setdefault((item.suite, item.task), []).append(number)
        return tuple(
            self._task(suite, task, numbers, rows) for (suite, task), numbers in by_task.items()
        )

    def _task(self, suite: str, task: str, numbers: list[int], rows: Sequence[Row]) -> Leakage:
        worst = sorted((n for n in numbers if self.worst[n]), key=lambda n: -self.worst[n])
        kinds = self.worst[numbers]
        return Leakage(
            suite=suite,
            task=task,
            items=len(numbers),
            exact=int((kinds == EXACT).sum()),
            near=int((kinds == NEAR).sum()),
            prompts=int((kinds == PROMPT).sum()),
            unchecked=sum(not len(self.patterns[n].words) for n in numbers),
            examples=tuple(
                Leak(
                    item=self.items[n].id,
                    origin=rows[int(self.row[n])].origin,
                    kind=KINDS[int(self.worst[n])],
                    coverage=float(self.coverage[n]),
                )
                for n in worst[:EXAMPLES]
            ),
        )


def _kind(one: SearchPattern, row: HashedWords, count: int, last: int) -> int:
    """Classify the match of an item in a row with enough common n-grams.

    Args:
        one: search pattern of the item.
        row: hashed words of the row.
        count: number of the item's n-grams in the row.
        last: word of the row at which the last of these n-grams starts.
    """
    if len(one.words) < NGRAM_WORDS:
        starts = find_sequence(row.hashes, one.words)
        return max((_kind_of_short(one, row, int(start)) for start in starts), default=NOTHING)
    is_complete = count == len(one.ngrams)
    if not one.answers:
        return EXACT if is_complete else NEAR
    return _kind_by_answer(is_complete, row.hashes[last + NGRAM_WORDS :], one.answers)


def _kind_by_answer(is_complete: bool, after: Hashes, answers: Sequence[Hashes]) -> int:
    """Classify the match of a prompt by the words after it.

    Args:
        is_complete: if true, the row has all n-grams of the prompt.
        after: (words,) uint64, words of the row after the prompt.
        answers: (words,) uint64 each, the correct answers.
    """
    if any(len(find_sequence(after, answer)) for answer in answers):
        return EXACT if is_complete else NEAR
    if any(_contains_most(after, answer) for answer in answers):
        return NEAR
    return PROMPT


def _contains_most(words: Hashes, answer: Hashes) -> bool:
    """Return True if `words` contain at least `COVERAGE` of a long answer's n-grams."""
    if len(answer) < NGRAM_WORDS:
        return False
    expected = unique_ngrams(answer, NGRAM_WORDS)
    return bool(np.isin(expected, unique_ngrams(words, NGRAM_WORDS)).mean() >= COVERAGE)


def _kind_of_short(one: SearchPattern, row: HashedWords, start: int) -> int:
    """Classify the match of a prompt or text of fewer than eight words at a word of a row."""
    end = start + len(one.words)
    alone = row.is_border(start) and row.is_border(end)
    if not one.answers:
        return EXACT if alone else NOTHING
    after = row.hashes[end:]
    follows = any(np.array_equal(after[: len(answer)], answer) for answer in one.answers)
    if len(one.words) < _MIN_PROMPT_WORDS and not (alone or (row.is_border(start) and follows)):
        return NOTHING
    for answer in one.answers:
        # Some words may precede the answer, as in `the capital of France is Paris`.
        if len(find_sequence(after[: NGRAM_WORDS + len(answer)], answer)):
            return EXACT
    long_answers = [answer for answer in one.answers if len(answer) >= NGRAM_WORDS]
    kind = _kind_by_answer(True, after, long_answers)
    return kind if kind >= NEAR or alone else NOTHING
