"""Flips: the items on which the adapter did worse than the base, or better.

The report shows them and `flips.jsonl` lists them, both from `find_flips`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.verdict import TaskVerdict, Verdict
from lora_kit.files import whole_file


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
    """All flips of a task.

    Attributes:
        right_or_wrong: whether every score is 0 or 1; then there are as many more won than lost as
            the difference times the items.
        has_outputs: whether an arm has put out anything; for losses there is nothing to show.
        lost: the largest difference first, then by item.
        won: in the same order.
    """

    suite: str
    task: str
    right_or_wrong: bool
    has_outputs: bool
    lost: tuple[Flip, ...]
    won: tuple[Flip, ...]


def find_flips(entries: Sequence[Entry], verdict: Verdict) -> tuple[TaskFlips, ...]:
    """The flips of every task, in the verdict's order; other arms than the two are left out."""
    arms: dict[tuple[str, str, str], dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        arms[entry.suite, entry.task, entry.arm][entry.item] = entry
    return tuple(
        _task_flips(
            suite.suite,
            task,
            arms[suite.suite, task.task, "base"],
            arms[suite.suite, task.task, "adapter"],
        )
        for suite in verdict.suites
        for task in suite.tasks
    )


def write_flips(path: Path, entries: Sequence[Entry], verdict: Verdict) -> int:
    """Write all flips, one JSON object a line, by suite, task, direction and size; their number."""
    rows = [flip.row() for task in find_flips(entries, verdict) for flip in (*task.lost, *task.won)]
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as stream:
        # In ASCII, so that no reader takes a line separator within a text for the end of a line.
        stream.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    return len(rows)


def _task_flips(
    suite: str, task: TaskVerdict, base: Mapping[str, Entry], adapter: Mapping[str, Entry]
) -> TaskFlips:
    sign = 1 if task.higher_is_better else -1
    found, scores, has_outputs = [], set(), False
    for item in sorted(base.keys() & adapter.keys()):
        before, after = base[item].score, adapter[item].score
        # As in the verdict: a loss that overflowed is no number to compare.
        if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
            continue
        found.append(Flip(base[item], adapter[item], sign * (after - before)))
        scores |= {before, after}
        has_outputs = has_outputs or bool(base[item].output or adapter[item].output)
    found.sort(key=lambda flip: -abs(flip.difference))
    return TaskFlips(
        suite,
        task.task,
        scores <= {0.0, 1.0},
        has_outputs,
        tuple(flip for flip in found if flip.difference < 0),
        tuple(flip for flip in found if flip.difference > 0),
    )
