"""Geometry of the plot of gain against forgetting: gain upwards, forgetting to the right.

Forgetting is the loss on the deciding retention task, as a fraction of its margin: at 1, the whole
margin is used up. Gains are in their unit if all gain tasks share one. Otherwise each gain is
divided by half the width of its interval, so that a value above 1 is a significant gain. The
template `page/plane.html.j2` draws the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import Notation, is_percent
from lora_kit.statistics.decisions import Decision, combine_decisions

LEFT, TOP, RIGHT, BOTTOM = 46, 12, 350, 256
"""Edges of the axes, in SVG user units, within the 360 by 300 of the template."""
SPACING = 13
"""Distance between the points of different tasks and between their names, in SVG user units."""
PADDING = 0.12
"""Fraction of an axis that is left free at either end."""
TICKS = 5
"""Approximate number of ticks per axis."""


@dataclass(frozen=True)
class Tick:
    """Tick of an axis: its coordinate and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class PlanePoint:
    """Gain task with its coordinates.

    Attributes:
        difference: formatted difference of the task.
        x: x of the point; tasks are drawn side by side, although their forgetting is the same.
        y: y of the gain.
        low: y of the interval's lower limit, or the bottom if the interval is unbounded.
        high: y of the interval's upper limit, or the top if the interval is unbounded.
        name_y: y of the text baseline of the name; names do not overlap.
    """

    difference: Difference
    x: float
    y: float
    low: float
    high: float
    name_y: float


@dataclass(frozen=True)
class Plane:
    """Plot of gain against forgetting, ready to be drawn.

    Attributes:
        x: x of the forgetting.
        x_low: x of its best case, or the left end if the interval is unbounded.
        x_high: x of its worst case, or the right end if the interval is unbounded.
        margin: x at which the margin is used up.
        zero: y of no gain.
        x_ticks: ticks of the horizontal axis, in percent of the margin.
        y_ticks: ticks of the vertical axis.
        points: gain tasks, largest gain first.
        worst: deciding retention task.
        used: part of its margin that is used up, with its best and worst case, in percent.
        unit: unit of the gains; empty if they are divided by half the width of their intervals.
        names: x of the names; their right end if `names_left`, else their left end.
        names_room: width available for names, in SVG user units.
        names_left: if true, names are to the left of the points.
        left_out: names of gain tasks whose intervals have no finite, positive width.
    """

    x: float
    x_low: float
    x_high: float
    margin: float
    zero: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[PlanePoint, ...]
    worst: Difference
    used: tuple[str, str, str]
    unit: str
    names: float
    names_room: float
    names_left: bool
    left_out: tuple[str, ...]


def deciding_task(retention: Sequence[Difference]) -> Difference:
    """Return the retention task that decides: the one whose worst case uses up most of its margin.

    Only tasks whose decision equals the combined decision of all retention tasks are considered.
    """
    decision: Decision = combine_decisions([d.task.decision for d in retention])
    return max(
        (d for d in retention if d.task.decision == decision),
        key=lambda d: d.task.margin_used[2],
    )


def build_plane(gain: Sequence[Difference], retention: Sequence[Difference]) -> Plane | None:
    """Place the tasks; `None` if a role has no task or no gain is finite."""
    if not gain or not retention:
        return None
    worst = deciding_task(retention)
    used = worst.task.margin_used
    unit = gain[0].unit if len({d.unit for d in gain}) == 1 else ""
    scaled = [(d, values) for d in gain if (values := _scaled(d, bool(unit)))]
    if not scaled:
        return None
    x, x_ticks = axis_scale([0.0, 1.0, *used], LEFT, RIGHT, percent=True)
    percent = bool(unit) and is_percent(gain[0].task.unit)
    heights = [value for _, values in scaled for value in values]
    y, y_ticks = axis_scale([0.0, *heights], BOTTOM, TOP, percent)
    points = _points(scaled, x(used[0]), y)
    share = Notation(percent=True, places=0).plain
    names_left = x(used[0]) > (LEFT + RIGHT) / 2
    names = points[0].x - SPACING if names_left else points[-1].x + SPACING
    drawn = [d.name for d, _ in scaled]
    return Plane(
        x=x(used[0]),
        x_low=x(used[1]),
        x_high=x(used[2]),
        margin=x(1.0),
        zero=y(0.0),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        points=points,
        worst=worst,
        used=(share(used[0]), share(used[1]), share(used[2])),
        unit=unit,
        names=names,
        names_room=names - LEFT if names_left else RIGHT - names,
        names_left=names_left,
        left_out=tuple(d.name for d in gain if d.name not in drawn),
    )


def _scaled(difference: Difference, in_unit: bool) -> tuple[float, float, float] | None:
    """Return gain and interval limits on the vertical scale; `None` if they cannot be drawn."""
    interval = difference.task.interval
    half = (interval.high - interval.low) / 2
    if not math.isfinite(interval.delta) or not (in_unit or 0 < half < math.inf):
        return None
    scale = 1.0 if in_unit else half
    return interval.delta / scale, interval.low / scale, interval.high / scale


def _points(
    scaled: Sequence[tuple[Difference, tuple[float, float, float]]],
    x: float,
    y: Callable[[float], float],
) -> tuple[PlanePoint, ...]:
    """Place points from left to right, largest gain first, each name below the previous one."""
    ordered = sorted(scaled, key=lambda one: -one[1][0])
    span = SPACING * (len(ordered) - 1)
    first = max(min(x - span / 2, RIGHT - 6 - span), LEFT + 6)
    lines: list[float] = []
    for _, (delta, _, _) in ordered:
        lines.append(max([y(delta) + 4, *(line + SPACING for line in lines[-1:])]))
    overflow = max(0.0, lines[-1] - BOTTOM + 4)
    return tuple(
        PlanePoint(
            difference=task,
            x=round(first + number * SPACING, 2),
            y=y(delta),
            low=y(low),
            high=y(high),
            name_y=round(line - overflow, 2),
        )
        for number, ((task, (delta, low, high)), line) in enumerate(
            zip(ordered, lines, strict=True)
        )
    )


def axis_scale(
    values: Sequence[float], start: float, end: float, percent: bool
) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    """Return a function from values to coordinates, and ticks, for an axis of all finite values.

    Args:
        values: values that the axis has to cover; at least one is finite.
        start: coordinate of the low end.
        end: coordinate of the high end.
        percent: if true, tick labels are in percent.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    padding = (high - low or 1.0) * PADDING
    low, high = low - padding, high + padding

    def place(value: float) -> float:
        return round(start + (min(max(value, low), high) - low) / (high - low) * (end - start), 2)

    step = _step((high - low) / TICKS)
    first, last = math.ceil(low / step), math.floor(high / step)
    scale = 100 if percent else 1
    places = max(0, -math.floor(math.log10(step * scale) + 1e-9))
    ticks = (
        Tick(place(number * step), f"{number * step * scale:.{places}f}".replace("-", "−"))
        for number in range(first, last + 1)
    )
    return place, tuple(ticks)


def _step(minimum: float) -> float:
    """Return the smallest step of 1, 2 or 5 times a power of ten that is at least a minimum."""
    power: float = 10.0 ** math.floor(math.log10(minimum))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= minimum * 0.999)
