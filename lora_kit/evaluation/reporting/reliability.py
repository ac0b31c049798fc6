"""Geometry of reliability diagrams: accuracy against confidence, in bins, for each arm.

The template `page/diagnostics.html.j2` draws the dots that are computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_kit.statistics.calibration import Calibration

SIDE = 150
"""Side of the unit square, in SVG user units."""
MIN_RADIUS, MAX_RADIUS = 1.5, 5.0
"""Radius of a dot, in SVG user units."""


@dataclass(frozen=True)
class Dot:
    """Dot of a bin, in SVG user units.

    Attributes:
        x: mean confidence of the bin.
        y: accuracy of the bin, upwards from the bottom of the square.
        radius: radius of the dot; its area is proportional to the bin's items.
    """

    x: float
    y: float
    radius: float


def reliability_dots(arm: Calibration) -> tuple[Dot, ...]:
    """Return the dots of one arm's bins; empty bins are left out."""
    largest = max(bar.count for bar in arm.bins)
    return tuple(
        Dot(
            round(bar.confidence * SIDE, 2),
            round((1 - bar.accuracy) * SIDE, 2),
            round(max(MIN_RADIUS, MAX_RADIUS * math.sqrt(bar.count / largest)), 2),
        )
        for bar in arm.bins
        if bar.confidence is not None and bar.accuracy is not None
    )
