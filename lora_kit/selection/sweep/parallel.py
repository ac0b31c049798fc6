"""Geometry of parallel coordinates: an axis for each searched field, then gain and forgetting.

Each trial is a line through its values. Axes stand side by side on a wide page, and lie below one
another on a narrow one. The template `parallel.html.j2` draws the result.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_kit.evaluation.reporting.plane import Tick
from lora_kit.selection.sweep.axes import (
    ParallelAxis,
    fitting_ticks,
    outcome_axes,
    shortened,
    value_axis,
)
from lora_kit.selection.sweep.outcome import (
    TrialOutcome,
    searched_fields,
    short_names,
    trial_outcomes,
    trial_values,
)
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import SweepResult
from lora_kit.selection.sweep.scatter import LETTER, is_drawable, point_name, role_of

SPREAD = 4.0
"""Distance between lines of the same value, in SVG user units, unless there are many."""
MOST_SPREAD = 20.0
"""Distance between the outermost lines of the same value."""
WIDE_SIZE = (960, 250)
"""Width of the plot and length of an axis where axes stand side by side."""
NARROW_SIZE = (360, 74)
"""Width of the plot and distance of axes where axes lie below one another."""
MARGIN_LEFT, MARGIN_RIGHT, HEAD = 84, 76, 58
BOLD = 7.6
"""Width of a letter of an axis's name, in SVG user units."""
MOST_LINES = 3


@dataclass(frozen=True)
class AxisTick:
    """Tick with its coordinates and label.

    Attributes:
        x: x of the tick.
        y: y of the tick.
        text: label, cut if it is long.
        note: whole label.
        text_x: x of the middle of a label below the tick.
    """

    x: float
    y: float
    text: str
    note: str
    text_x: float = 0.0


@dataclass(frozen=True)
class DrawnAxis:
    """Axis with its coordinates.

    Attributes:
        name: lines of its name.
        full_name: whole name.
        name_x: x of the name.
        name_y: y of the baseline of the name's first line.
        path: path of the axis.
        ticks: ticks.
        allowed: path of the part that passes; empty for fields.
    """

    name: tuple[str, ...]
    full_name: str
    name_x: float
    name_y: float
    path: str
    ticks: tuple[AxisTick, ...]
    allowed: str


@dataclass(frozen=True)
class TrialLine:
    """Line of a trial.

    Attributes:
        trial: the trial.
        outcome: outcome of the trial; `None` unless it is complete.
        kind: `kept`, `unkept`, or `given-up`.
        role: `winner`, `default`, or empty.
        path: path through the values.
        end: end of the path.
        label: label at the end; empty but for the winner and the default.
        label_y: y of the label's baseline.
    """

    trial: Trial
    outcome: TrialOutcome | None
    kind: str
    role: str
    path: str
    end: tuple[float, float]
    label: str
    label_y: float


@dataclass(frozen=True)
class ParallelPlot:
    """Parallel coordinates, ready to be drawn.

    Attributes:
        kind: `wide` or `narrow`.
        width: width of the plot.
        height: height of the plot.
        axes: axes in their order.
        lines: lines in the order in which they are drawn, the winner's last.
    """

    kind: str
    width: int
    height: float
    axes: tuple[DrawnAxis, ...]
    lines: tuple[TrialLine, ...]


def build_parallel(result: SweepResult) -> tuple[ParallelPlot, ...]:
    """Return the plot for wide and for narrow pages; empty if no field is searched."""
    fields = searched_fields(result)
    if not fields:
        return ()
    names = short_names(fields)
    values = {one.number: trial_values(one, result) for one in result.trials}
    axes = [
        value_axis(
            names[field],
            {number: texts[field] for number, texts in values.items() if field in texts},
        )
        for field in fields
    ]
    outcomes = {
        number: one
        for number, one in trial_outcomes(result.trials, result.choice).items()
        if is_drawable(one)
    }
    axes += outcome_axes(result, outcomes)
    return tuple(_plot(kind, axes, result, outcomes) for kind in ("wide", "narrow"))


def _plot(
    kind: str,
    axes: Sequence[ParallelAxis],
    result: SweepResult,
    outcomes: dict[int, TrialOutcome],
) -> ParallelPlot:
    draw = _standing if kind == "wide" else _lying
    drawn = [draw(axis, number, len(axes)) for number, axis in enumerate(axes)]
    spots: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for number, axis in enumerate(axes):
        for trial, along in _spread(axis, _length(kind)).items():
            spots[trial].append(_spot(kind, number, along, len(axes)))
    lines = [_line(one, spots[one.number], result, outcomes) for one in result.trials]
    rank = {"given-up": 0, "unkept": 1, "kept": 2}
    lines.sort(key=lambda one: (one.role == "winner", one.role == "default", rank[one.kind]))
    lines = [one for one in lines if one.path]
    if kind == "wide":
        width, height = WIDE_SIZE[0], HEAD + WIDE_SIZE[1] + 12.0
    else:
        width, height = NARROW_SIZE[0], NARROW_SIZE[1] * len(axes) + 8.0
    return ParallelPlot(kind, width, height, tuple(drawn), tuple(_apart(lines)))


def _length(kind: str) -> float:
    return WIDE_SIZE[1] if kind == "wide" else NARROW_SIZE[0] - 20


def _spot(kind: str, number: int, along: float, axes: int) -> tuple[float, float]:
    """Return the coordinates of a place on an axis.

    Args:
        kind: `wide` or `narrow`.
        number: number of the axis.
        along: distance from its low end.
        axes: number of axes.
    """
    if kind == "wide":
        apart = (WIDE_SIZE[0] - MARGIN_LEFT - MARGIN_RIGHT) / (axes - 1)
        return round(MARGIN_LEFT + number * apart, 2), round(HEAD + WIDE_SIZE[1] - along, 2)
    return round(10 + along, 2), round(32.0 + number * NARROW_SIZE[1], 2)


def _standing(axis: ParallelAxis, number: int, axes: int) -> DrawnAxis:
    apart = (WIDE_SIZE[0] - MARGIN_LEFT - MARGIN_RIGHT) / (axes - 1)
    length, room = WIDE_SIZE[1], int(min(apart - 8, 160) / BOLD)
    x, bottom = _spot("wide", number, 0, axes)
    kept = fitting_ticks(axis.ticks, [14 / length] * len(axis.ticks))
    letters = int(min(apart * 0.6, MARGIN_LEFT - 12) / LETTER)
    ticks = tuple(
        AxisTick(x, round(bottom - tick.at * length, 2), shortened(tick.text, letters), tick.text)
        for tick in kept
    )
    name = _wrapped(axis.name, room)
    allowed = ""
    if axis.allowed is not None:
        allowed = f"M{x} {round(bottom - axis.allowed * length, 2)}V{HEAD}"
    name_y = HEAD - 12 - 14 * (len(name) - 1)
    return DrawnAxis(name, axis.name, x, name_y, f"M{x} {HEAD}V{bottom}", ticks, allowed)


def _lying(axis: ParallelAxis, number: int, axes: int) -> DrawnAxis:
    length = _length("narrow")
    left, y = _spot("narrow", number, 0, axes)
    letters = max(5, int(length / LETTER / max(2, len(axis.ticks))) - 1)
    if not axis.is_category:
        letters = 12
    texts = [shortened(tick.text, letters) for tick in axis.ticks]
    kept = fitting_ticks(axis.ticks, [(len(text) + 1) * LETTER / length for text in texts])
    ticks = tuple(_tick_below(tick, left + tick.at * length, y, letters) for tick in kept)
    allowed = ""
    if axis.allowed is not None:
        allowed = f"M{round(left + axis.allowed * length, 2)} {y}H{left + length}"
    path = f"M{left} {y}H{left + length}"
    name = (shortened(axis.name, int(length / BOLD)),)
    return DrawnAxis(name, axis.name, left, y - 12, path, ticks, allowed)


def _tick_below(tick: Tick, x: float, y: float, letters: int) -> AxisTick:
    """Return a tick whose label is within the plot, also at its ends."""
    text = shortened(tick.text, letters)
    half = len(text) * LETTER / 2
    middle = min(max(x, half), NARROW_SIZE[0] - half)
    return AxisTick(round(x, 2), y, text, tick.text, round(middle, 2))


def _wrapped(name: str, letters: int) -> tuple[str, ...]:
    """Return a name in lines, divided after punctuation; a line that is too long is cut."""
    lines = [""]
    for part in re.findall(r"[^_., ]*[_., ]*", name):
        if lines[-1] and len((lines[-1] + part).rstrip()) > letters and len(lines) < MOST_LINES:
            lines.append("")
        lines[-1] += part
    return tuple(shortened(line.rstrip(), letters) for line in lines)


def _spread(axis: ParallelAxis, length: float) -> dict[int, float]:
    """Return each trial's distance from the low end; lines of the same value lie side by side."""
    groups: dict[float, list[int]] = defaultdict(list)
    for trial, place in axis.places.items():
        groups[round(place, 4)].append(trial)
    found = {}
    for place, trials in groups.items():
        step = min(SPREAD, MOST_SPREAD / max(1, len(trials) - 1)) if axis.is_field else 0.0
        for number, trial in enumerate(trials):
            found[trial] = place * length + (number - (len(trials) - 1) / 2) * step
    return found


def _line(
    trial: Trial,
    spots: Sequence[tuple[float, float]],
    result: SweepResult,
    outcomes: dict[int, TrialOutcome],
) -> TrialLine:
    outcome, role = outcomes.get(trial.number), role_of(trial, result)
    kind = "given-up"
    if outcome is not None:
        kind = "kept" if trial.keeps_retention else "unkept"
    end = spots[-1] if spots else (0.0, 0.0)
    label = point_name(trial, role) if role and outcome is not None else ""
    path = "M" + "L".join(f"{x} {y}" for x, y in spots) if spots else ""
    return TrialLine(trial, outcome, kind, role, path, end, label, end[1] + 4)


def _apart(lines: Sequence[TrialLine]) -> list[TrialLine]:
    """Return the lines with the labels of winner and default below one another."""
    labelled = sorted((one for one in lines if one.label), key=lambda one: one.end[1])
    shifts = {}
    last = -100.0
    for one in labelled:
        last = shifts[one.trial.number] = max(one.label_y, last + 14)
    return [replace(one, label_y=shifts.get(one.trial.number, one.label_y)) for one in lines]
