"""Flips: the items on which the adapter did worse than the base, or better.

The report shows the first of each task and `flips.jsonl` lists all, in the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.shelf import Shelf
from lora_kit.evaluation.source import Source, source_of
from lora_kit.evaluation.verdict import TaskVerdict, Verdict
from lora_kit.runtime.files import whole_file

SHOWN = 2_000
"""Flips of a task whose texts a page bears, in each direction."""
ARMS = ("base", "adapter")
Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class Flip:
    """One item with what both arms made of it.

    Attributes:
        difference: of the scores, positive where the adapter is better; never 0.
    """

    base: Entry
    adapter: Entry
    difference: float

    @property
    def direction(self) -> Literal["lost", "won"]:
        """Which arm did better."""
        return "lost" if self.difference < 0 else "won"

    def row(self) -> dict[str, Any]:
        """As a line of `flips.jsonl`."""
        return {
            "suite": self.base.suite,
            "task": self.base.task,
            "item": self.base.item,
            "cluster": self.base.cluster,
            "slices": dict(self.base.slices),
            "direction": self.direction,
            "base_score": self.base.score,
            "adapter_score": self.adapter.score,
            "difference": self.difference,
            "base_output": self.base.output,
            "adapter_output": self.adapter.output,
            "prompt": self.base.prompt,
            "reference": self.base.reference,
        }


@dataclass(frozen=True)
class TaskFlips:
    """The flips of a task, the largest difference first, then by item.

    Attributes:
        right_or_wrong: whether every score is 0 or 1; then there are as many more won than lost as
            the difference times the items.
        has_outputs: whether an arm has put out anything; for losses there is nothing to show.
        lost: the first of them, with their texts.
        won: in the same order.
        lost_items: all of them.
        won_items: all of them.
    """

    suite: str
    task: str
    right_or_wrong: bool
    has_outputs: bool
    lost: tuple[Flip, ...]
    won: tuple[Flip, ...]
    lost_items: int
    won_items: int


@dataclass(frozen=True)
class _Order:
    """All flips of a task in their order, without what was said.

    Attributes:
        lost: items with their difference.
        won: in the same order.
    """

    suite: str
    task: str
    right_or_wrong: bool
    lost: tuple[tuple[str, float], ...]
    won: tuple[tuple[str, float], ...]


def find_flips(
    results: Source | Sequence[Entry], verdict: Verdict, most: int = SHOWN
) -> tuple[TaskFlips, ...]:
    """The flips of every task, in the verdict's order; other arms than the two are left out.

    Args:
        results: a ledger, or its entries.
        verdict: on them.
        most: flips of a task whose texts are wanted, in each direction.
    """
    source = source_of(results)
    return tuple(_found(source, order, most) for order in _orders(source, verdict))


def _found(source: Source, order: _Order, most: int) -> TaskFlips:
    shown = [*order.lost[:most], *order.won[:most]]
    arms: dict[str, dict[str, Entry]] = {arm: {} for arm in ARMS}
    if shown:
        for entry in source.entries(order.suite, order.task, ARMS, [item for item, _ in shown]):
            arms[entry.arm][entry.item] = entry
    base, adapter = (arms[arm] for arm in ARMS)
    flips = [Flip(base[item], adapter[item], difference) for item, difference in shown]
    lost = min(len(order.lost), most)
    return TaskFlips(
        order.suite,
        order.task,
        order.right_or_wrong,
        source.has_outputs(order.suite, order.task, ARMS),
        tuple(flips[:lost]),
        tuple(flips[lost:]),
        len(order.lost),
        len(order.won),
    )


def write_flips(path: Path, results: Source | Sequence[Entry], verdict: Verdict) -> int:
    """Write all flips, one JSON object a line, by suite, task, direction and size; their number."""
    source, count = source_of(results), 0
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as stream:
        for order in _orders(source, verdict):
            for flip in _read(source, order, path.parent):
                # In ASCII, so that no reader takes a line separator in a text for a line's end.
                stream.write(json.dumps(flip.row(), allow_nan=False) + "\n")
                count += 1
    return count


def _read(source: Source, order: _Order, directory: Path) -> Iterator[Flip]:
    """All flips of a task in their order, which is not the ledger's, through a file."""
    flips = [*order.lost, *order.won]
    if not flips:
        return
    numbers = {item: n for n, (item, _) in enumerate(flips)}
    with closing(Shelf(directory, len(ARMS) * len(flips))) as shelf:
        for entry in source.entries(order.suite, order.task, ARMS, numbers.keys()):
            shelf.put(len(ARMS) * numbers[entry.item] + ARMS.index(entry.arm), entry)
        for n, (_, difference) in enumerate(flips):
            base, adapter = (shelf.get(len(ARMS) * n + arm) for arm in range(len(ARMS)))
            yield Flip(base, adapter, difference)


def _orders(source: Source, verdict: Verdict) -> Iterator[_Order]:
    for suite in verdict.suites:
        for task in suite.tasks:
            scores = source.scores(suite.suite, task.task)
            yield _order(suite.suite, task, *(scores.get(arm, {}) for arm in ARMS))


def _order(suite: str, task: TaskVerdict, base: Scores, adapter: Scores) -> _Order:
    sign = 1 if task.higher_is_better else -1
    found, scores = [], set()
    for item in sorted(base.keys() & adapter.keys()):
        before, after = base[item], adapter[item]
        # As in the verdict: a loss that overflowed is no number to compare.
        if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
            continue
        if before != after:
            found.append((item, sign * (after - before)))
        scores |= {before, after}
    found.sort(key=lambda flip: -abs(flip[1]))
    return _Order(
        suite,
        task.task,
        scores <= {0.0, 1.0},
        tuple(flip for flip in found if flip[1] < 0),
        tuple(flip for flip in found if flip[1] > 0),
    )
