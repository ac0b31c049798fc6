"""Formatted differences and the geometry of the forest plot that shows them.

The plot has one row per task, better to the right. Each row has a scale of its own, since tasks
have different units; zero is aligned. The template `page/forest.html.j2` draws the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.notation import Notation
from lora_kit.evaluation.task_verdict import TaskVerdict

# Width of the plot relative to the longest bar, so that the end of the bar stays visible.
HEADROOM = 1.1


@dataclass(frozen=True)
class Difference:
    """Verdict on a task with formatted values.

    Attributes:
        name: name of the task in the report.
        task: verdict on the task.
        notation: number format of the task.
        unit: unit of differences; percentage points (pp) if the scores are in percent.
        base: score of the base.
        adapter: score of the adapter.
        delta: difference.
        low: lower end of the interval.
        high: upper end of the interval.
        margin: margin in the unit of differences, without the unit; empty for gain.
        needs: items that would decide an undecided task, such as `about 1,200 items`; empty if it
            is decided or more items would not help.
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
        """Format the values of a task's verdict."""
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
        # More items of a single cluster carry no information about the spread between clusters.
        return "other clusters"
    if task.items_needed is None:
        return "an unknown number of items"
    return f"about {task.items_needed:,} items"


@dataclass(frozen=True)
class ForestLayout:
    """Dimensions of a forest plot, in SVG user units, which are CSS pixels at full width.

    Attributes:
        kind: `wide`, with bar and text in one line, or `narrow`, with text above and below the bar.
        width: width of the plot with its text.
        plot: left and right end of the bars.
        head: height of the axis label.
        heading: height of a suite's heading.
        row: height of a row.
        bar: distance from the top of a row to its bar.
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
        """X coordinate of the zero line."""
        return sum(self.plot) / 2


WIDE = ForestLayout("wide", 960, (216, 616), head=22, heading=32, row=44, bar=22, reach=18)
NARROW = ForestLayout("narrow", 340, (4, 336), head=22, heading=34, row=108, bar=38, reach=14)


@dataclass(frozen=True)
class Bar:
    """Row of a forest plot: a difference with its coordinates.

    Attributes:
        difference: formatted difference.
        top: y of the top of the row.
        y: y of the bar.
        point: x of the difference; `None` if it is not finite.
        low: x of the lower end, or the left end of the plot if the interval is unbounded.
        high: x of the upper end, or the right end of the plot if the interval is unbounded.
        low_open: true if the interval is unbounded on the left.
        high_open: true if the interval is unbounded on the right.
        threshold: x of the value that the interval has to clear: zero for gain, minus the margin
            for retention.
    """

    difference: Difference
    top: float
    y: float
    point: float | None
    low: float
    high: float
    low_open: bool
    high_open: bool
    threshold: float


@dataclass(frozen=True)
class ForestGroup:
    """Bars of one suite, below a label at `top`."""

    label: str
    top: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Forest:
    """Forest plot, ready to be drawn."""

    layout: ForestLayout
    height: float
    groups: tuple[ForestGroup, ...]


def build_forest(
    suites: Sequence[tuple[str, Sequence[Difference]]], layout: ForestLayout
) -> Forest:
    """Place the differences of all suites from top to bottom.

    Args:
        suites: label and differences of each suite.
        layout: dimensions of the plot.
    """
    y = float(layout.head)
    groups = []
    for label, tasks in suites:
        top = y + layout.heading
        bars = tuple(_bar(task, top + row * layout.row, layout) for row, task in enumerate(tasks))
        groups.append(ForestGroup(label, y, bars))
        y = top + len(tasks) * layout.row
    return Forest(layout, y, tuple(groups))


def _bar(difference: Difference, top: float, layout: ForestLayout) -> Bar:
    left, right = layout.plot
    interval, threshold = difference.task.interval, difference.task.threshold
    values = (interval.delta, interval.low, interval.high, threshold)
    extent = max(abs(value) for value in values if math.isfinite(value)) * HEADROOM or 1.0

    def x(value: float) -> float:
        return round(layout.zero + value / extent * (right - left) / 2, 2)

    low_open, high_open = not math.isfinite(interval.low), not math.isfinite(interval.high)
    return Bar(
        difference=difference,
        top=top,
        y=top + layout.bar,
        point=x(interval.delta) if math.isfinite(interval.delta) else None,
        low=left if low_open else x(interval.low),
        high=right if high_open else x(interval.high),
        low_open=low_open,
        high_open=high_open,
        threshold=x(threshold),
    )
