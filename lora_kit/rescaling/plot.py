"""Plot gain against forgetting over the scales, on half A (`rescale.png`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_kit.evaluation.gain_choice import most_forgotten_task
from lora_kit.rescaling.choice import Candidate, ScaleChoice
from lora_kit.rescaling.scale import THIRDS, AdapterScale
from lora_kit.runtime.files import whole_file

UNIFORM = "all blocks"
# Without C1, the chosen scale, and C3, the margin.
COLORS = ("C0", "C2", "C4", "C5", "C6", "C7", "C8", "C9")


@dataclass(frozen=True)
class ScalePoint:
    """Point of one scale in the plot.

    Attributes:
        series: all blocks, the third that is scaled, or the factor of the intruder dimensions.
        name: name of the scale.
        label: name beside the point.
        forgotten: share of its margin that the retention task closest to its margin uses up, with
            the optimistic and the pessimistic limit.
        gain: gain with its lower and upper limit.
        chosen: true for the chosen scale.
    """

    series: str
    name: str
    label: str
    forgotten: tuple[float, float, float]
    gain: tuple[float, float, float]
    chosen: bool


def scale_points(candidates: Sequence[Candidate], choice: ScaleChoice) -> list[ScalePoint]:
    """Return the point of each candidate.

    The gain on a single task is in the task's unit; on several tasks it is the standardized gain.
    """
    points = []
    for n, (candidate, gain) in enumerate(zip(candidates, choice.gains, strict=True)):
        _, task = most_forgotten_task(candidate.verdict)
        gain_tasks = candidate.tasks("gain")
        interval = gain_tasks[0][1].interval
        points.append(
            ScalePoint(
                _series(candidate.scale),
                candidate.scale.name,
                # The legend names the factor of the intruder dimensions.
                replace(candidate.scale, intruders=1.0).name,
                task.margin_used,
                (interval.delta, interval.low, interval.high)
                if len(gain_tasks) == 1
                else (gain.value, gain.low, gain.high),
                n == choice.chosen,
            )
        )
    return points


def _series(scale: AdapterScale) -> str:
    if scale.intruders != 1:
        return f"intruders {scale.intruders:g}"
    scaled = [third for third, s in zip(THIRDS, scale.parts, strict=True) if s != 1]
    return UNIFORM if scale.is_uniform else f"{scaled[0]} third"


def plot_rescale(candidates: Sequence[Candidate], choice: ScaleChoice, path: Path) -> None:
    """Plot every scale with its intervals, the margin, and the chosen scale.

    Args:
        candidates: scales that were tried, with their verdicts on half A.
        choice: chosen scale.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    points = scale_points(candidates, choice)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    axes.axvline(1, color="C3", linewidth=1, linestyle="--", label="margin", zorder=0)
    axes.plot(0, 0, "s", color="0.4", label="base (scale 0)", zorder=4)
    for number, series in enumerate(dict.fromkeys(point.series for point in points)):
        _draw(axes, series, [p for p in points if p.series == series], COLORS[number % len(COLORS)])
    for point in points:
        if point.chosen:
            axes.plot(
                *_position(point), "*", color="C1", markersize=20, markeredgecolor="black",
                zorder=5, label=f"chosen: {point.name}",
            )  # fmt: skip
    axes.set_xlabel(
        "forgetting: share of the margin used up, on the retention task closest to its margin"
    )
    tasks = candidates[0].tasks("gain")
    name, task = tasks[0]
    several = f"gain: mean of {len(tasks)} tasks, in half-widths of their intervals"
    axes.set_ylabel(f"gain on {name} ({task.unit})" if len(tasks) == 1 else several)
    axes.set_title("Half A, with intervals", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw(axes: Any, series: str, points: Sequence[ScalePoint], color: str) -> None:
    xs, ys = [p.forgotten[0] for p in points], [p.gain[0] for p in points]
    for point in points:
        axes.errorbar(
            *_position(point), xerr=_error_bars(point.forgotten), yerr=_error_bars(point.gain),
            color=color, elinewidth=0.8, alpha=0.45,
        )  # fmt: skip
        axes.annotate(point.label, _position(point), xytext=(6, 6), textcoords="offset points")
    if not series.endswith("third"):
        # At scale 0 every uniform scale is the base.
        xs, ys = [0.0, *xs], [0.0, *ys]
    axes.plot(xs, ys, "o-", color=color, linewidth=1, markersize=5, label=series)


def _position(point: ScalePoint) -> tuple[float, float]:
    return point.forgotten[0], point.gain[0]


def _error_bars(values: tuple[float, float, float]) -> list[list[float]]:
    """Return lengths below and above a value, (2, 1); 0 towards an infinite limit."""
    value, low, high = values
    return [[max(d, 0.0) if math.isfinite(d) else 0.0] for d in (value - low, high - value)]
