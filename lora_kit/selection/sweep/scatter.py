"""Geometry of the plot of gain against forgetting on half A, with a point for each trial.

Gain is upwards, forgetting to the right, as in the plot of a report. The template
`scatter.html.j2` draws the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.evaluation.reporting.plane import Tick, axis_scale
from lora_kit.selection.sweep.outcome import (
    Limits,
    TrialOutcome,
    gain_is_percent,
    trial_outcomes,
)
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import SweepResult

LETTER, LINE = 6.8, 12
"""Width of a letter and height of a line of labels, in SVG user units."""
MARKER = 6.5
"""Half the width of a point."""
FORGETTING_SHOWN = (-1.0, 2.0)
"""Shares of the margin that the axis of forgetting reaches at most, for most trials."""
LOSS_SHOWN = 2.0
"""Loss that the axis of gain reaches at most, for most trials, as a multiple of the best gain."""


@dataclass(frozen=True)
class PlotLayout:
    """Dimensions of a plot, in SVG user units, which are CSS pixels at full width.

    Attributes:
        kind: `wide` or `narrow`.
        width: width with the labels.
        height: height with the labels.
        left: left edge of the axes.
        top: upper edge of the axes.
        right: right edge of the axes.
        bottom: lower edge of the axes.
    """

    kind: str
    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int


SCATTERS = (
    PlotLayout("wide", 960, 440, left=50, top=12, right=950, bottom=394),
    PlotLayout("narrow", 360, 380, left=46, top=12, right=350, bottom=334),
)


@dataclass(frozen=True)
class PointLabel:
    """Label of a point: its text, the start or the end of its baseline, and its `text-anchor`."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class TrialPoint:
    """Trial with its coordinates.

    Attributes:
        outcome: outcome of the trial.
        x: x of the forgetting.
        y: y of the gain.
        bars: path of both intervals, with ends where they end within the axes.
        role: `winner`, `default`, or empty.
        label: label, placed so that it covers as little as possible.
    """

    outcome: TrialOutcome
    x: float
    y: float
    bars: str
    role: str
    label: PointLabel


@dataclass(frozen=True)
class TrialScatter:
    """Plot of gain against forgetting, ready to be drawn.

    Attributes:
        layout: dimensions.
        margin: x at which the margin is used up.
        zero: y of no gain.
        x_ticks: ticks of the horizontal axis, in percent of the margin.
        y_ticks: ticks of the vertical axis.
        points: trials in the order in which they are drawn, the winner last.
        unit: unit of the gains.
        beyond: numbers of the trials beyond an end of an axis, which are drawn at that end.
        left_out: numbers of the trials whose gain or forgetting is no number.
    """

    layout: PlotLayout
    margin: float
    zero: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[TrialPoint, ...]
    unit: str
    beyond: tuple[int, ...]
    left_out: tuple[int, ...]


def build_scatter(result: SweepResult, layout: PlotLayout) -> TrialScatter | None:
    """Place the complete trials; `None` if there are none whose values are numbers."""
    found = list(trial_outcomes(result.trials, result.choice).values())
    drawn = [one for one in found if is_drawable(one)]
    if not drawn:
        return None
    gains, shares = [one.gain for one in drawn], [one.forgotten for one in drawn]
    x, x_ticks = axis_scale(shown_shares(shares), layout.left, layout.right, percent=True)
    y, y_ticks = axis_scale(
        shown_gains(gains), layout.bottom, layout.top, gain_is_percent(result.trials)
    )
    ends = ((x(-math.inf), x(math.inf)), (y(-math.inf), y(math.inf)))
    beyond = [
        one.trial.number
        for one in drawn
        if x(one.forgotten[0]) in ends[0] or y(one.gain[0]) in ends[1]
    ]
    return TrialScatter(
        layout=layout,
        margin=x(1.0),
        zero=y(0.0),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        points=_points(drawn, result, x, y, layout),
        unit=drawn[0].gain_unit,
        beyond=tuple(beyond),
        left_out=tuple(one.trial.number for one in found if one not in drawn),
    )


def is_drawable(outcome: TrialOutcome) -> bool:
    """Return true if gain and forgetting are numbers, whatever their limits are."""
    values = (*outcome.gain, *outcome.forgotten)
    is_finite = math.isfinite(outcome.gain[0]) and math.isfinite(outcome.forgotten[0])
    return is_finite and not any(map(math.isnan, values))


def shown_shares(shares: Sequence[Limits]) -> list[float]:
    """Return the shares of the margin that an axis covers: 0, 1, and all that are not extreme."""
    low, high = FORGETTING_SHOWN
    return [0.0, 1.0, *_without_extremes(shares, low, high)]


def shown_gains(gains: Sequence[Limits]) -> list[float]:
    """Return the gains that an axis covers: 0, and all but losses that dwarf the best gain."""
    best = max(gain[0] for gain in gains)
    low = -LOSS_SHOWN * best if best > 0 else -math.inf
    return [0.0, *_without_extremes(gains, low, math.inf)]


def _without_extremes(values: Sequence[Limits], low: float, high: float) -> list[float]:
    """Return values and finite limits, cut at both ends unless a quarter of the values is beyond.

    One trial that diverged would otherwise press all others into a corner.
    """
    quarter, three = np.quantile([value[0] for value in values], (0.25, 0.75))
    low, high = min(low, float(quarter)), max(high, float(three))
    return [min(max(one, low), high) for limits in values for one in limits if math.isfinite(one)]


def role_of(trial: Trial, result: SweepResult) -> str:
    """Return `winner`, `default`, or an empty text for any other trial."""
    if trial.number == result.choice.chosen:
        return "winner"
    return "default" if trial.is_default else ""


def _points(
    outcomes: Sequence[TrialOutcome],
    result: SweepResult,
    x: Callable[[float], float],
    y: Callable[[float], float],
    layout: PlotLayout,
) -> tuple[TrialPoint, ...]:
    """Place the points; labels are placed by importance, the winner's first."""
    importance = {"winner": 0, "default": 1, "": 2}
    ordered = sorted(outcomes, key=lambda one: importance[role_of(one.trial, result)])
    spots = [(x(one.forgotten[0]), y(one.gain[0])) for one in ordered]
    taken = [(a - MARKER, b - MARKER, a + MARKER, b + MARKER) for a, b in spots]
    points = []
    for one, spot in zip(ordered, spots, strict=True):
        role = role_of(one.trial, result)
        label, box = _label(point_name(one.trial, role), spot, taken, layout)
        taken.append(box)
        bars = _bars(spot, one, x, y)
        points.append(TrialPoint(one, *spot, bars, role, label))
    return tuple(reversed(points))


def point_name(trial: Trial, role: str) -> str:
    """Return the label of a trial in plots."""
    if role == "winner":
        return "default, winner" if trial.is_default else f"winner {trial.number}"
    return role or str(trial.number)


def _bars(
    spot: tuple[float, float],
    outcome: TrialOutcome,
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> str:
    at_x, at_y = spot
    left, right = (x(limit) for limit in outcome.forgotten[1:])
    low, high = (y(limit) for limit in outcome.gain[1:])
    path = [f"M{left} {at_y}H{right}M{at_x} {low}V{high}"]
    path += [f"M{one} {at_y - 3}v6" for one in (left, right) if x(-math.inf) < one < x(math.inf)]
    path += [f"M{at_x - 3} {one}h6" for one in (low, high) if y(math.inf) < one < y(-math.inf)]
    return "".join(path)


Box = tuple[float, float, float, float]


def _label(
    text: str, spot: tuple[float, float], taken: Sequence[Box], layout: PlotLayout
) -> tuple[PointLabel, Box]:
    """Return the label at the first of several places, near ones first, that covers least."""
    width = len(text) * LETTER
    best: tuple[float, PointLabel, Box] | None = None
    for distance in (8, 14, 22):
        for down, right in ((-1, 1), (1, 1), (-1, -1), (1, -1), (-2, 1), (2, 1), (-2, -1), (2, -1)):
            x = spot[0] + right * distance
            y = spot[1] + down * distance * 0.75 + (0 if down < 0 else LINE * 0.75)
            left = x if right > 0 else x - width
            box = (left, y - LINE * 0.8, left + width, y + LINE * 0.2)
            out = max(layout.left - box[0], box[2] - layout.right, 0)
            out += max(layout.top - box[1], box[3] - layout.bottom, 0)
            cost = out * 100 + sum(_overlap(box, other) for other in taken)
            if best is None or cost < best[0]:
                anchor = "start" if right > 0 else "end"
                best = cost, PointLabel(text, round(x, 2), round(y, 2), anchor), box
    assert best is not None
    return best[1], best[2]


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)
