"""Geometry of the training curves: loss over steps, one line a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_kit.evaluation.reporting.plane import Tick, axis_scale
from lora_kit.runs.directory import RunDirectory

LEFT, TOP, RIGHT, BOTTOM = 44, 10, 436, 236
"""Edges of the axes, in SVG user units, within the 460 by 276 of the template."""
SPACING = 12
"""Distance between the labels of lines, in SVG user units."""
MAX_POINTS, WINDOWS = 160, 20
"""Points of a line, at most; and the part of the steps, one over this, that a mean is over."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """Line of a run.

    Attributes:
        run: number of the run.
        style: number of its colour and dashes, from 0.
        path: path of the line.
        dots: points that were measured; none for a line of many.
        leader: path from its end to its label.
        label_x: x of its label.
        label_y: y of its label; labels do not overlap.
    """

    run: int
    style: int
    path: str
    dots: tuple[tuple[float, float], ...]
    leader: str
    label_x: float
    label_y: float


@dataclass(frozen=True)
class CurvePlot:
    """Plot of one loss, ready to be drawn.

    Attributes:
        name: identifier on the page.
        title: name of the loss.
        lines: line of each run that has it.
        x_ticks: ticks of the steps.
        y_ticks: ticks of the loss.
        window: steps that a mean is over, the largest of all runs; 1 for measured values.
    """

    name: str
    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    window: int


@dataclass(frozen=True)
class Losses:
    """Losses of a run, as (step, nats).

    Attributes:
        training: loss of each step.
        validation: held-out loss where it was measured, before training and of the saved adapter
            included.
    """

    training: Points
    validation: Points


def read_losses(run: RunDirectory, record: Mapping[str, Any]) -> Losses:
    """Read the losses of a run; empty where it has none."""
    entries = []
    if run.metrics.is_file():
        for line in run.metrics.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a line that was cut when the training was killed
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                entries.append(entry)
    training = record.get("training") or {}
    ends = [
        {"step": 0, "validation_loss": training.get("validation_before")},
        {"step": training.get("kept_step"), "validation_loss": training.get("validation_after")},
    ]
    return Losses(_points(entries, "loss"), _points([*ends, *entries], "validation_loss"))


def _points(entries: Sequence[Mapping[str, Any]], name: str) -> Points:
    found = {
        entry["step"]: float(entry[name])
        for entry in entries
        if isinstance(entry["step"], int) and _is_finite(entry.get(name))
    }
    return sorted(found.items())


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def plot_curves(losses: Mapping[int, Losses]) -> tuple[CurvePlot, ...]:
    """Place the training and the validation loss of runs; a plot without lines is left out.

    Args:
        losses: losses by number of the run, whose order sets the styles.
    """
    smooth = {run: _smoothed(one.training) for run, one in losses.items()}
    window = max((size for _, size in smooth.values()), default=1)
    return tuple(
        plot
        for plot in (
            _plot("training", "Training loss", {n: one for n, (one, _) in smooth.items()}, window),
            _plot("validation", "Validation loss", {n: o.validation for n, o in losses.items()}, 1),
        )
        if plot is not None
    )


def _smoothed(points: Points) -> tuple[Points, int]:
    """Return a running mean of at most `MAX_POINTS` points, and its window in steps."""
    window = max(3, len(points) // WINDOWS)
    if len(points) < 2 * window:
        return points, 1
    steps, losses = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    kernel = np.ones(window) / window
    # Means of whole windows alone, each at its middle.
    means, middles = (np.convolve(one, kernel, "valid") for one in (losses, steps))
    keep = np.unique(np.linspace(0, len(means) - 1, min(len(means), MAX_POINTS)).astype(int))
    return [(float(middles[n]), float(means[n])) for n in keep], window


def _plot(name: str, title: str, points: Mapping[int, Points], window: int) -> CurvePlot | None:
    drawn = {run: one for run, one in points.items() if one}
    if not drawn:
        return None
    every = [point for one in drawn.values() for point in one]
    last = max(step for step, _ in every)
    x, x_ticks = axis_scale([0.0, max(last, 1.0)], LEFT, RIGHT, percent=False)
    y, y_ticks = axis_scale([loss for _, loss in every], BOTTOM, TOP, percent=False)
    labels = _spread({run: y(one[-1][1]) for run, one in drawn.items()})
    lines = []
    for style, run in enumerate(points):
        if run not in drawn:
            continue
        placed = tuple((x(step), y(loss)) for step, loss in drawn[run])
        lines.append(
            Line(
                run,
                style,
                "M" + "L".join(f"{a} {b}" for a, b in placed),
                placed if window == 1 or len(placed) == 1 else (),
                f"M{placed[-1][0]} {placed[-1][1]}L{RIGHT} {labels[run] - 4}",
                RIGHT + 6,
                labels[run],
            )
        )
    return CurvePlot(name, title, tuple(lines), x_ticks, y_ticks, window)


def _spread(heights: Mapping[int, float]) -> dict[int, float]:
    """Return heights in the same order, `SPACING` apart, within the plot."""
    placed: dict[int, float] = {}
    line = -math.inf
    for run, height in sorted(heights.items(), key=lambda one: one[1]):
        line = max(height + 4, line + SPACING)
        placed[run] = line
    overflow = max(0.0, line - BOTTOM - 4)
    return {run: round(height - overflow, 2) for run, height in placed.items()}
