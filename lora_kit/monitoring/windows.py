"""Windows of a stream: a number of texts, or a span of time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lora_kit.monitoring.texts import TIME, StreamText
from lora_kit.runtime.errors import DataError

WINDOW = 100
"""Texts of a window by default."""
LEAST_TEXTS = 10
"""Least number of texts of a window by number."""


@dataclass(frozen=True)
class Window:
    """Consecutive texts of a stream.

    Attributes:
        start: index of the first text.
        end: index behind the last text.
    """

    start: int
    end: int


def windows_of_texts(texts: Sequence[StreamText], size: int) -> list[Window]:
    """Cut texts into windows of a number of texts; the rest waits for a full window.

    Raises:
        DataError: if there are fewer texts than a window has, or a window is too small.
    """
    if size < LEAST_TEXTS:
        raise DataError(
            f"--window: too few texts for a test (got {size}). Fix: set {LEAST_TEXTS} or more"
        )
    if len(texts) < size:
        raise DataError(
            f"--window: too few texts for one window of {size} (got {len(texts)}). Fix: wait for "
            f"more texts, or lower --window to {LEAST_TEXTS} or more"
        )
    return [Window(start, start + size) for start in range(0, len(texts) - size + 1, size)]


def windows_of_time(texts: Sequence[StreamText], seconds: float) -> list[Window]:
    """Cut texts into windows of a span of time, from the first text on; empty spans are left out.

    The span of the last text waits, since more texts of that span may come: a window that is
    tested twice would be looked at twice.

    Raises:
        DataError: if the texts have no times, or all are of one span.
    """
    times = [one.time.seconds for one in texts if one.time is not None]
    if not times:
        raise DataError(
            f"--every: the texts have no field `{TIME}` (got {len(texts)} texts). Fix: add the "
            "field, or use --window"
        )
    spans = [math.floor((time - times[0]) / seconds) for time in times]
    starts = [n for n in range(len(spans)) if n == 0 or spans[n] != spans[n - 1]]
    if len(starts) < 2:
        raise DataError(
            f"--every: no span of time is over yet (got {len(texts)} texts of one span). Fix: wait "
            "for a later text, or name a shorter time"
        )
    return [Window(start, end) for start, end in pairwise(starts)]
