"""Which evaluation items stand in a training row.

One pass over the rows, a block at a time: each run of words of a block is looked up among the runs
of all items, and a row that holds enough of an item's is looked at. Exact but for collisions of 64
bits; memory is that of the items, not of the rows.

An item counts as leaked where its answer stands there too ("input-and-label contamination", Dodge
et al. 2021, arXiv:2104.08758); a prompt with no or another answer is counted apart. An item of less
than eight words has to begin or end where a turn or a line does, so that `2 + 2 =` does not leak
into every text that holds a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.data.audit.findings import EXAMPLES, Leak, Leakage
from lora_kit.data.audit.item import AuditedItem
from lora_kit.data.audit.sought import COVERAGE, RUN, Sought, sought
from lora_kit.data.audit.words import Hashes, Words, places, runs, runs_of
from lora_kit.data.rows import Row

# What an item was found as, worst last.
NOTHING, PROMPT, NEAR, EXACT = range(4)
KINDS = {PROMPT: "prompt", NEAR: "near", EXACT: "exact"}
# A prompt of fewer words says little by itself.
_FEW = 5
# Most runs of words are in no item: one look at a bit tells.
_BITS = np.uint64((1 << 22) - 1)


@dataclass(frozen=True)
class _Hits:
    """Rows of a block that hold enough of an item.

    Attributes:
        rows: (hits,) int64, within the block.
        items: (hits,) int64.
        runs: (hits,) int64: how many of the item's runs the row holds.
        last: (hits,) int64: where the last of them begins for the first time, in the block.
    """

    rows: NDArray[np.int64]
    items: NDArray[np.int64]
    runs: NDArray[np.int64]
    last: NDArray[np.int64]


class LeakSearch:
    """The items, and the worst that was found of each as the rows go by."""

    def __init__(self, items: Sequence[AuditedItem]):
        self.items = items
        self.sought = sought(items)
        self.worst = np.zeros(len(items), np.int64)
        self.row = np.full(len(items), -1)
        self.coverage = np.zeros(len(items))
        self._sizes = {one.size for one in self.sought if len(one.words)}
        self._needed = np.array([one.needed for one in self.sought], np.int64)
        runs_of_items = [one.runs for one in self.sought if len(one.words)]
        owners = [n for n, one in enumerate(self.sought) for _ in one.runs if len(one.words)]
        flat = np.concatenate([np.empty(0, np.uint64), *runs_of_items])
        order = np.argsort(flat, kind="stable")
        self._owners = np.array(owners, np.int64)[order]
        self._runs, self._first = np.unique(flat[order], return_index=True)
        self._count = np.diff(np.append(self._first, len(flat)))
        self._known = np.zeros(int(_BITS) + 1, bool)
        self._known[self._runs & _BITS] = True

    def look(self, block: Sequence[Words], first_row: int) -> None:
        """Look for the items in rows.

        Args:
            block: the rows' words.
            first_row: number of the first of them among all rows.
        """
        if not self._sizes or not block:
            return
        starts = np.cumsum([0, *(len(one.hashes) for one in block)])
        hits = self._hits(np.concatenate([one.hashes for one in block]), starts)
        for row, item, count, last in zip(
            hits.rows, hits.items, hits.runs, hits.last - starts[hits.rows], strict=True
        ):
            one = self.sought[item]
            kind = _kind(one, block[row], int(count), int(last))
            coverage = count / len(one.runs)
            if (kind, coverage) > (self.worst[item], self.coverage[item]) and kind:
                self.worst[item], self.coverage[item] = kind, coverage
                self.row[item] = first_row + row

    def _hits(self, words: Hashes, starts: NDArray[np.int64]) -> _Hits:
        found, positions = self._lookup(words, starts)
        count = self._count[found]
        # Each run as often as there are items that hold it.
        steps = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        items = self._owners[np.repeat(self._first[found], count) + steps]
        positions, found = np.repeat(positions, count), np.repeat(found, count)
        rows = np.searchsorted(starts, positions, side="right") - 1
        pair = rows * len(self.items) + items
        order = np.lexsort((positions, found, pair))
        pair, found, positions = pair[order], found[order], positions[order]
        # The first place of each run of each pair; then all places of each pair together.
        once = np.ones(len(pair), bool)
        once[1:] = (pair[1:] != pair[:-1]) | (found[1:] != found[:-1])
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
        """Numbers of the runs that are an item's, and where each begins."""
        row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        found, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for size, every in runs(words, max(self._sizes)):
            if size not in self._sizes:
                continue
            maybe = np.flatnonzero(self._known[every & _BITS])
            maybe = maybe[row[maybe] == row[maybe + size - 1]]
            number = np.searchsorted(self._runs, every[maybe])
            number = np.minimum(number, len(self._runs) - 1)
            same = self._runs[number] == every[maybe]
            found.append(number[same])
            positions.append(maybe[same])
        return np.concatenate(found), np.concatenate(positions)

    def result(self, rows: Sequence[Row]) -> tuple[Leakage, ...]:
        """What was found, one a task, in the order of the items."""
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
            unchecked=sum(not len(self.sought[n].words) for n in numbers),
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


def _kind(one: Sought, row: Words, count: int, last: int) -> int:
    """What a row that holds enough of an item's runs holds of the item.

    Args:
        one: the item.
        row: the row's words.
        count: of the item's runs that the row holds.
        last: where the last of them begins.
    """
    if len(one.words) < RUN:
        return max((_short(one, row, int(n)) for n in places(row.hashes, one.words)), default=0)
    whole = count == len(one.runs)
    if not one.answers:
        return EXACT if whole else NEAR
    return _graded(whole, row.hashes[last + RUN :], one.answers)


def _graded(whole: bool, behind: Hashes, answers: Sequence[Hashes]) -> int:
    """What a prompt that was found is, by the words behind it."""
    if any(len(places(behind, answer)) for answer in answers):
        return EXACT if whole else NEAR
    if any(_mostly(behind, answer) for answer in answers):
        return NEAR
    return PROMPT


def _mostly(words: Hashes, answer: Hashes) -> bool:
    """Whether most of an answer stands there; of a short one, all has to."""
    if len(answer) < RUN:
        return False
    wanted = runs_of(answer, RUN)
    return bool(np.isin(wanted, runs_of(words, RUN)).mean() >= COVERAGE)


def _short(one: Sought, row: Words, start: int) -> int:
    """What a prompt or a text of less than eight words is that begins at a word of a row."""
    end = start + len(one.words)
    alone = row.is_border(start) and row.is_border(end)
    if not one.answers:
        return EXACT if alone else NOTHING
    behind = row.hashes[end:]
    follows = any(np.array_equal(behind[: len(answer)], answer) for answer in one.answers)
    if len(one.words) < _FEW and not (alone or (row.is_border(start) and follows)):
        return NOTHING
    for answer in one.answers:
        # The answer may be introduced, as in `the capital of France is Paris`.
        if len(places(behind[: RUN + len(answer)], answer)):
            return EXACT
    kind = _graded(True, behind, [answer for answer in one.answers if len(answer) >= RUN])
    return kind if kind >= NEAR or alone else NOTHING
