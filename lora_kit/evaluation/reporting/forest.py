"""A forest plot: how differences are written, and where they are drawn.

One row a task, zero aligned, right is better. Rows have different units, so each has a scale of its
own. Functions of numbers, nothing else; the template draws what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.notation import Notation
from lora_kit.evaluation.verdict import TaskVerdict

# The longest bar ends a little before the plot does, so that its end can be seen.
HEADROOM = 1.1


@dataclass(frozen=True)
class Difference:
    """A task's verdict with its name and its numbers as they are written.

    Attributes:
        unit: of the differences: percentage points (pp) where the scores are percentages.
        margin: without the unit, in the unit of the differences; empty for gain.
        needs: what would decide it; empty if it is decided, or if more items would not help.
    """

    name: str
    task: TaskVerdict
    notation: Notation
    unit: str
    base: str
    adapter: str
    delta: str
    low: str
    high: str
    margin: str
    needs: str

    @classmethod
    def of(cls, name: str, task: TaskVerdict) -> Difference:
        """Write the numbers of a task."""
        notation = Notation.of(task)
        return cls(
            name=name,
            task=task,
            notation=notation,
            unit="pp" if notation.percent else task.unit,
            base=notation.plain(task.base),
            adapter=notation.plain(task.adapter),
            delta=notation.signed(task.interval.delta),
            low=notation.signed(task.interval.low),
            high=notation.signed(task.interval.high),
            margin=""
            if task.margin is None
            else f"{task.margin * (100 if notation.percent else 1):.6g}",
            needs=_needs(task),
        )


def _needs(task: TaskVerdict) -> str:
    if task.decision != "INCONCLUSIVE" or task.reason:
        return ""
    if task.interval.clusters == 1:
        # However many, items of the one cluster do not tell how others would differ.
        return "other clusters"
    if task.items_needed is None:
        return "an unknown number of items"
    return f"about {task.items_needed:,} items"


@dataclass(frozen=True)
class Layout:
    """Where the columns of a plot are, in SVG user units: CSS pixels at its full width.

    Attributes:
        kind: `wide`, all in one line, or `narrow`, words above and below the bar.
        plot: left and right end of the bars.
        head: height of what says which side is better.
        heading: height of a suite's heading.
        row: height of a row.
        bar: from the top of a row down to its bar.
        reach: half the height of a row's shaded area.
    """

    kind: str
    width: int
    plot: tuple[int, int]
    head: int
    heading: int
    row: int
    bar: int
    reach: int

    @property
    def zero(self) -> float:
        """Where the zero line is."""
        return sum(self.plot) / 2


WIDE = Layout("wide", 960, (216, 616), head=22, heading=32, row=44, bar=22, reach=18)
NARROW = Layout("narrow", 340, (4, 336), head=22, heading=34, row=108, bar=38, reach=14)


@dataclass(frozen=True)
class Bar:
    """A difference in its place.

    Attributes:
        top: of its row.
        y: of the bar.
        point: x of the difference; `None` if it is not a number.
        low: x of the lower limit, or the left end of the plot if there is none.
        high: x of the upper limit, or the right end.
        low_open: whether the interval goes on without limit to the left.
        high_open: and to the right.
        to_clear: x of what the interval has to clear: zero for gain, the margin for retention.
    """

    of: Difference
    top: float
    y: float
    point: float | None
    low: float
    high: float
    low_open: bool
    high_open: bool
    to_clear: float


@dataclass(frozen=True)
class Group:
    """The bars of one suite."""

    label: str
    top: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Forest:
    """A plot to draw."""

    layout: Layout
    height: float
    groups: tuple[Group, ...]


def forest(suites: Sequence[tuple[str, Sequence[Difference]]], layout: Layout) -> Forest:
    """Place the differences of all suites, given with their labels, from top to bottom."""
    y = float(layout.head)
    groups = []
    for label, tasks in suites:
        top = y + layout.heading
        bars = tuple(_bar(of, top + row * layout.row, layout) for row, of in enumerate(tasks))
        groups.append(Group(label, y, bars))
        y = top + len(tasks) * layout.row
    return Forest(layout, y, tuple(groups))


def _bar(of: Difference, top: float, layout: Layout) -> Bar:
    left, right = layout.plot
    interval, to_clear = of.task.interval, -(of.task.margin or 0.0)
    values = (interval.delta, interval.low, interval.high, to_clear)
    extent = max(abs(value) for value in values if math.isfinite(value)) * HEADROOM or 1.0

    def x(value: float) -> float:
        return round(layout.zero + value / extent * (right - left) / 2, 2)

    low_open, high_open = not math.isfinite(interval.low), not math.isfinite(interval.high)
    return Bar(
        of=of,
        top=top,
        y=top + layout.bar,
        point=x(interval.delta) if math.isfinite(interval.delta) else None,
        low=left if low_open else x(interval.low),
        high=right if high_open else x(interval.high),
        low_open=low_open,
        high_open=high_open,
        to_clear=x(to_clear),
    )
