"""Flips: items on which the adapter scores lower (lost) or higher (won) than the base.

The report shows the first flips of each task; `flips.jsonl` lists all of them in the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.ledger_view import LedgerView
from lora_kit.evaluation.reporting.entry_store import EntryStore
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.runtime.files import whole_file

MAX_SHOWN = 2_000
"""Maximum number of flips per task and direction whose texts are in the page."""
ARMS = ("base", "adapter")
Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class Flip:
    """Item on which the two arms have different scores.

    Attributes:
        base: entry of the base.
        adapter: entry of the adapter.
        difference: difference of the scores, positive if the adapter is better; never 0.
    """

    base: Entry
    adapter: Entry
    difference: float

    @property
    def direction(self) -> Literal["lost", "won"]:
        """Return `won` if the adapter is better, `lost` if the base is."""
        return "lost" if self.difference < 0 else "won"

    def row(self) -> dict[str, Any]:
        """Return the fields of a line of `flips.jsonl`."""
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
    """Flips of a task, the largest difference first, then by item id.

    Attributes:
        suite: name of the suite.
        task: name of the task.
        binary: true if every score is 0 or 1; the mean difference times the number of items is then
            the number won minus the number lost.
        has_outputs: true if an arm has outputs; loss tasks have none.
        lost: first lost items, with their texts.
        won: first won items, with their texts.
        lost_items: number of all lost items.
        won_items: number of all won items.
    """

    suite: str
    task: str
    binary: bool
    has_outputs: bool
    lost: tuple[Flip, ...]
    won: tuple[Flip, ...]
    lost_items: int
    won_items: int


@dataclass(frozen=True)
class _FlipOrder:
    """All flips of a task in order, without their texts.

    Attributes:
        lost: ids and differences of lost items.
        won: ids and differences of won items.
    """

    suite: str
    task: str
    binary: bool
    lost: tuple[tuple[str, float], ...]
    won: tuple[tuple[str, float], ...]


def find_flips(view: LedgerView, verdict: Verdict) -> tuple[TaskFlips, ...]:
    """Return the flips between the arms `base` and `adapter`, task by task.

    Args:
        view: results of both arms.
        verdict: verdict on the results, which sets the order of tasks.
    """
    return tuple(_task_flips(view, order) for order in _flip_orders(view, verdict))


def _task_flips(view: LedgerView, order: _FlipOrder) -> TaskFlips:
    shown = [*order.lost[:MAX_SHOWN], *order.won[:MAX_SHOWN]]
    arms: dict[str, dict[str, Entry]] = {arm: {} for arm in ARMS}
    if shown:
        for entry in view.entries(order.suite, order.task, ARMS, [item for item, _ in shown]):
            arms[entry.arm][entry.item] = entry
    base, adapter = (arms[arm] for arm in ARMS)
    flips = [Flip(base[item], adapter[item], difference) for item, difference in shown]
    lost = min(len(order.lost), MAX_SHOWN)
    return TaskFlips(
        order.suite,
        order.task,
        order.binary,
        view.has_outputs(order.suite, order.task, ARMS),
        tuple(flips[:lost]),
        tuple(flips[lost:]),
        len(order.lost),
        len(order.won),
    )


def write_flips(path: Path, view: LedgerView, verdict: Verdict) -> None:
    """Write all flips as JSON Lines, sorted by suite, task, direction and size."""
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as stream:
        for order in _flip_orders(view, verdict):
            for flip in _read_flips(view, order, path.parent):
                # ASCII, since some readers split lines at Unicode line separators.
                stream.write(json.dumps(flip.row(), allow_nan=False) + "\n")


def _read_flips(view: LedgerView, order: _FlipOrder, directory: Path) -> Iterator[Flip]:
    """Yield all flips of a task in order.

    Entries are sorted through a temporary file in `directory`, since the ledger has another order
    and may be larger than memory.
    """
    flips = [*order.lost, *order.won]
    if not flips:
        return
    numbers = {item: n for n, (item, _) in enumerate(flips)}
    with closing(EntryStore(directory, len(ARMS) * len(flips))) as store:
        for entry in view.entries(order.suite, order.task, ARMS, numbers.keys()):
            store.put(len(ARMS) * numbers[entry.item] + ARMS.index(entry.arm), entry)
        for n, (_, difference) in enumerate(flips):
            base, adapter = (store.get(len(ARMS) * n + arm) for arm in range(len(ARMS)))
            yield Flip(base, adapter, difference)


def _flip_orders(view: LedgerView, verdict: Verdict) -> Iterator[_FlipOrder]:
    for suite, task in verdict.shown_tasks:
        scores = view.scores(suite.suite, task.task)
        yield _flip_order(suite.suite, task, *(scores.get(arm, {}) for arm in ARMS))


def _flip_order(suite: str, task: TaskVerdict, base: Scores, adapter: Scores) -> _FlipOrder:
    sign = 1 if task.higher_is_better else -1
    flips, scores = [], set()
    for item in sorted(base.keys() & adapter.keys()):
        before, after = base[item], adapter[item]
        # The verdict leaves out scores that are not finite, such as a loss that overflowed.
        if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
            continue
        if before != after:
            flips.append((item, sign * (after - before)))
        scores |= {before, after}
    flips.sort(key=lambda flip: -abs(flip[1]))
    return _FlipOrder(
        suite,
        task.task,
        scores <= {0.0, 1.0},
        tuple(flip for flip in flips if flip[1] < 0),
        tuple(flip for flip in flips if flip[1] > 0),
    )
