"""Gain against forgetting, as a plane: what was gained upwards, what it cost to the right.

Forgetting is that of the retention task which decides, in shares of its margin: at 1 all that is
tolerated is lost. Gains are in their unit where they have one and the same; otherwise each is in
halves of its own interval, so that it is above zero for sure beyond 1. Functions of numbers,
nothing else; the template draws what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import is_percent
from lora_kit.statistics.decisions import Decision, combined

WIDTH, HEIGHT = 360, 300
LEFT, TOP, RIGHT, BOTTOM = 46, 12, 350, 256
APART = 13
"""Between points that stand for several tasks, and between their names."""
ROOM = 0.12
"""Part of an axis that is left free at either end."""
TICKS = 5
"""On an axis, about."""


@dataclass(frozen=True)
class Tick:
    """A number on an axis and where it is."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """A gain task in its place.

    Attributes:
        x: of the point; the tasks stand beside each other, though their forgetting is the same.
        low: y of the interval's lower limit, or the bottom if it has none.
        name_y: of the baseline of its name, clear of the others'.
    """

    of: Difference
    x: float
    y: float
    low: float
    high: float
    name_y: float


@dataclass(frozen=True)
class Plane:
    """What to draw.

    Attributes:
        x: of the forgetting.
        x_low: of its lower limit, or the left end if it has none.
        margin: x where the margin is used up.
        zero: y of no gain.
        worst: the retention task whose forgetting it is.
        used: the share of the margin that it used up, and its limits, in percent.
        unit: of the gains; empty where they are in halves of their intervals.
        names: x of the tasks' names, and how much room there is; they end there if they are on the
            left of the points (`names_left`).
        left_out: names of gain tasks whose intervals have no half.
    """

    x: float
    x_low: float
    x_high: float
    margin: float
    zero: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    worst: Difference
    used: tuple[str, str, str]
    unit: str
    names: float
    names_room: float
    names_left: bool
    left_out: tuple[str, ...]


def deciding(retention: Sequence[Difference]) -> Difference:
    """Of the retention tasks that decide the worst: at its limit it uses up most of its margin."""
    decision: Decision = combined([d.task.decision for d in retention])
    return max(
        (d for d in retention if d.task.decision == decision),
        key=lambda d: -d.task.interval.low / (d.task.margin or 1.0),
    )


def plane(gain: Sequence[Difference], retention: Sequence[Difference]) -> Plane | None:
    """Place the tasks; `None` where there are not both roles, or no gain has a number."""
    if not gain or not retention:
        return None
    worst = deciding(retention)
    margin = worst.task.margin or 1.0
    used = tuple(
        -value / margin
        for value in (worst.task.interval.delta, worst.task.interval.high, worst.task.interval.low)
    )
    unit = gain[0].unit if len({d.unit for d in gain}) == 1 else ""
    scaled = [(d, values) for d in gain if (values := _scaled(d, bool(unit)))]
    if not scaled:
        return None
    x, x_ticks = _axis([0.0, 1.0, *used], LEFT, RIGHT, percent=True)
    percent = bool(unit) and is_percent(gain[0].task.unit)
    heights = [value for _, values in scaled for value in values]
    y, y_ticks = _axis([0.0, *heights], BOTTOM, TOP, percent)
    points = _points(scaled, x(used[0]), y)
    names_left = x(used[0]) > (LEFT + RIGHT) / 2
    names = points[0].x - APART if names_left else points[-1].x + APART
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
        used=(_share(used[0]), _share(used[1]), _share(used[2])),
        unit=unit,
        names=names,
        names_room=names - LEFT if names_left else RIGHT - names,
        names_left=names_left,
        left_out=tuple(d.name for d in gain if d.name not in drawn),
    )


def _scaled(of: Difference, in_unit: bool) -> tuple[float, float, float] | None:
    """Difference and limits on the plane's scale."""
    interval = of.task.interval
    half = (interval.high - interval.low) / 2
    if not math.isfinite(interval.delta) or not (in_unit or 0 < half < math.inf):
        return None
    by = 1.0 if in_unit else half
    return interval.delta / by, interval.low / by, interval.high / by


def _points(
    scaled: Sequence[tuple[Difference, tuple[float, float, float]]],
    x: float,
    y: Callable[[float], float],
) -> tuple[Point, ...]:
    """From left to right the greatest gain first, each name a line below the one before."""
    ordered = sorted(scaled, key=lambda one: -one[1][0])
    span = APART * (len(ordered) - 1)
    first = max(min(x - span / 2, RIGHT - 6 - span), LEFT + 6)
    lines: list[float] = []
    for _, (delta, _, _) in ordered:
        lines.append(max([y(delta) + 4, *(line + APART for line in lines[-1:])]))
    up = max(0.0, lines[-1] - BOTTOM + 4)
    return tuple(
        Point(of, round(first + number * APART, 2), y(delta), y(low), y(high), round(line - up, 2))
        for number, ((of, (delta, low, high)), line) in enumerate(zip(ordered, lines, strict=True))
    )


def _axis(
    values: Sequence[float], start: float, end: float, percent: bool
) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    """Where a value is, for an axis on which all finite ones are, and its ticks."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = (high - low or 1.0) * ROOM
    low, high = low - room, high + room

    def place(value: float) -> float:
        return round(start + (min(max(value, low), high) - low) / (high - low) * (end - start), 2)

    step = _step((high - low) / TICKS)
    first, last = math.ceil(low / step), math.floor(high / step)
    places = max(0, -math.floor(math.log10(step * (100 if percent else 1)) + 1e-9))
    ticks = []
    for number in range(first, last + 1):
        value = number * step * (100 if percent else 1)
        ticks.append(Tick(place(number * step), f"{value:.{places}f}".replace("-", "−")))
    return place, tuple(ticks)


def _step(least: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is no smaller."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)


def _share(value: float) -> str:
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    return f"{value:.0%}".replace("-", "−") if round(value * 100) else "0%"
