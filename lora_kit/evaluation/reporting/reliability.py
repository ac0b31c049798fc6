"""Reliability diagrams: how often each arm is right where it is how sure.

Functions of numbers, nothing else; the template draws what is computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_kit.statistics.calibration import Calibration

SIDE = 150
"""Of the square from 0 to 1, in SVG user units."""
SMALLEST, LARGEST = 1.5, 5.0
"""Radius of a point, by the items in its bin."""


@dataclass(frozen=True)
class Dot:
    """A bin with items: x its mean confidence, y the part that is right, upwards."""

    x: float
    y: float
    radius: float


def dots(arm: Calibration) -> tuple[Dot, ...]:
    """The bins of one arm; a dot's area goes with its items."""
    most = max(bar.count for bar in arm.bins)
    return tuple(
        Dot(
            round(bar.confidence * SIDE, 2),
            round((1 - bar.accuracy) * SIDE, 2),
            round(max(SMALLEST, LARGEST * math.sqrt(bar.count / most)), 2),
        )
        for bar in arm.bins
        if bar.confidence is not None and bar.accuracy is not None
    )
