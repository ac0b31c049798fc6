"""Geometry of the curves of a stream: evidence and values over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.plane import Tick, axis_scale
from lora_kit.monitoring.result import Monitoring

LEFT, TOP, RIGHT, BOTTOM = 52, 10, 444, 196
"""Edges of the axes, in SVG user units, within the 460 by 236 of the template."""
LEAST_EVIDENCE = -3.0
"""Smallest log10 of the evidence that is drawn; less says the same."""


@dataclass(frozen=True)
class Curve:
    """Values of one signal over the windows, ready to be drawn.

    Attributes:
        name: identifier on the page.
        title: title of the plot.
        path: path of the line.
        dots: places of the windows, and true from the alarm on.
        rule: y of the limit or of the reference.
        x_ticks: ticks of the windows.
        y_ticks: ticks of the values.
    """

    name: str
    title: str
    path: str
    dots: tuple[tuple[float, float, bool], ...]
    rule: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class SignalCurves:
    """Curves of one signal: its evidence with the limit, and its values with the reference's."""

    evidence: Curve
    values: Curve


def signal_curves(found: Monitoring) -> tuple[SignalCurves, ...]:
    """Place the curves of all signals."""
    limit = found.limit / math.log(10)
    curves = []
    for one in found.signals:
        alarm = found.alarms.get(one.name)
        evidence = [max(w.evidence / math.log(10), LEAST_EVIDENCE) for w in one.windows]
        curves.append(
            SignalCurves(
                _curve(f"{one.name}-evidence", "Evidence, log10", evidence, limit, alarm),
                _curve(f"{one.name}-values", one.unit, one.values, one.reference, alarm),
            )
        )
    return tuple(curves)


def _curve(name: str, title: str, values: Sequence[float], rule: float, alarm: int | None) -> Curve:
    x, x_ticks = axis_scale([1.0, max(len(values), 2)], LEFT, RIGHT, percent=False)
    y, y_ticks = axis_scale([*values, rule], BOTTOM, TOP, percent=False)
    # Windows are counted; a tick in between means nothing.
    whole = tuple(tick for tick in x_ticks if tick.text.isdigit() and tick.text != "0")
    placed = [(x(number), y(value)) for number, value in enumerate(values, 1)]
    return Curve(
        name,
        title,
        "M" + "L".join(f"{a} {b}" for a, b in placed),
        tuple((a, b, alarm is not None and n >= alarm) for n, (a, b) in enumerate(placed, 1)),
        y(rule),
        whole,
        y_ticks,
    )
