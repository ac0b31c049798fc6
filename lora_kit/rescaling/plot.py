"""`rescale.png`: gain against forgetting over the scales, as half A has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.rescaling.pick import Candidate, Pick, most_forgotten
from lora_kit.rescaling.strength import THIRDS, AdapterScale
from lora_kit.runtime.files import whole_file

WHOLE = "whole adapter"


@dataclass(frozen=True)
class Point:
    """A scale in its place.

    Attributes:
        series: the whole adapter, or the third that is turned.
        forgotten: share of the margin that is used up on the retention task nearest to it, and its
            limits from the optimistic to the pessimistic one.
        gain: with its limits.
    """

    series: str
    name: str
    forgotten: tuple[float, float, float]
    gain: tuple[float, float, float]
    chosen: bool


def points(candidates: Sequence[Candidate], picked: Pick) -> list[Point]:
    """Where each candidate is; a gain of one task is in its unit, others as `pick.gains`."""
    found = []
    for n, (candidate, gain) in enumerate(zip(candidates, picked.gains, strict=True)):
        _, task = most_forgotten(candidate)
        margin = task.margin or 1.0
        of = task.interval
        gained = candidate.tasks("gain")
        interval = gained[0][1].interval
        found.append(
            Point(
                _series(candidate.strength),
                candidate.strength.name,
                (-of.delta / margin, -of.high / margin, -of.low / margin),
                (interval.delta, interval.low, interval.high)
                if len(gained) == 1
                else (gain.value, gain.low, gain.high),
                n == picked.chosen,
            )
        )
    return found


def _series(strength: AdapterScale) -> str:
    turned = [third for third, s in zip(THIRDS, strength.parts, strict=True) if s != 1]
    return WHOLE if strength.is_whole else f"{turned[0]} third"


def plot_rescale(candidates: Sequence[Candidate], picked: Pick, path: Path) -> None:
    """Draw every scale with its intervals, the margin, and the one that was taken.

    Args:
        candidates: what was tried.
        picked: of them.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure

    found = points(candidates, picked)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    axes.axvline(1, color="C3", linewidth=1, linestyle="--", label="margin", zorder=0)
    axes.plot(0, 0, "s", color="0.4", label="base (scale 0)", zorder=4)
    for number, series in enumerate(dict.fromkeys(point.series for point in found)):
        _draw(axes, series, [p for p in found if p.series == series], f"C{number % 3}")
    for point in found:
        if point.chosen:
            axes.plot(
                *_at(point), "*", color="C1", markersize=20, markeredgecolor="black", zorder=5,
                label=f"taken: {point.name}",
            )  # fmt: skip
    axes.set_xlabel("forgetting: share of its margin that the retention task nearest to it uses up")
    tasks = candidates[0].tasks("gain")
    name, task = tasks[0]
    several = f"gain: mean of {len(tasks)} tasks, in halves of their intervals"
    axes.set_ylabel(f"gain on {name} ({task.unit})" if len(tasks) == 1 else several)
    axes.set_title("Half A, with intervals", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw(axes: Any, series: str, found: Sequence[Point], color: str) -> None:
    xs, ys = [p.forgotten[0] for p in found], [p.gain[0] for p in found]
    for point in found:
        axes.errorbar(
            *_at(point), xerr=_bars(point.forgotten), yerr=_bars(point.gain), color=color,
            elinewidth=0.8, alpha=0.45,
        )  # fmt: skip
        axes.annotate(point.name, _at(point), xytext=(6, 6), textcoords="offset points")
    if series == WHOLE:
        xs, ys = [0.0, *xs], [0.0, *ys]
    axes.plot(xs, ys, "o-", color=color, linewidth=1, markersize=5, label=series)


def _at(point: Point) -> tuple[float, float]:
    return point.forgotten[0], point.gain[0]


def _bars(of: tuple[float, float, float]) -> list[list[float]]:
    """Lengths below and above, none towards a limit that there is not."""
    value, low, high = of
    return [[max(d, 0.0) if math.isfinite(d) else 0.0] for d in (value - low, high - value)]
