"""How numbers are written in the report: with their units, signs and enough places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.verdict import TaskVerdict
from lora_kit.statistics.decisions import Interval

MOST_PLACES = 6
SMALLEST_P = 0.001
"""Smaller ones are said to be smaller."""


def is_percent(unit: str) -> bool:
    """Whether scores of this unit are parts of a whole, and written in percent."""
    return unit == "followed" or unit.startswith("accuracy")


def item_unit(task: TaskVerdict) -> str:
    """What the score of an item is measured in; macro-F1 is a score of all of them only."""
    return "accuracy" if task.unit == "macro-F1" else task.unit


@dataclass(frozen=True)
class Notation:
    """How the numbers of a task are written: accuracies in percent, their differences in points."""

    percent: bool
    places: int

    @classmethod
    def of(cls, task: TaskVerdict) -> Notation:
        """Of a task's own difference, which has to clear zero or the margin."""
        line = -(task.margin or 0.0)
        return cls.fit(task.unit, (task.base, task.adapter), task.interval, line)

    @classmethod
    def fit(
        cls, unit: str, scores: Sequence[float], interval: Interval, line: float = 0.0
    ) -> Notation:
        """With as many places as it takes to see on which side of the line a limit is."""
        percent = is_percent(unit)
        size = max(abs(score) for score in scores)
        fewest = 1 if percent or size >= 100 else 2 if size >= 10 else 3
        limits = [limit for limit in (interval.low, interval.high) if limit != line]
        for places in range(fewest, MOST_PLACES):
            notation = cls(percent, places)
            if all(notation.signed(limit) != notation.signed(line) for limit in limits):
                return notation
        return cls(percent, fewest)

    def plain(self, value: float) -> str:
        """A score or a mean."""
        return self._written(value, "") + ("%" if self.percent and math.isfinite(value) else "")

    def signed(self, value: float) -> str:
        """A difference."""
        return self._written(value, "+")

    def _written(self, value: float, sign: str) -> str:
        if math.isnan(value):
            return "not a number"
        if math.isinf(value):
            return "+∞" if value > 0 else "−∞"
        # Rounded first: what rounds to zero has no sign.
        rounded = round(value * 100 if self.percent else value, self.places)
        text = f"{rounded:{sign}.{self.places}f}" if rounded else f"{0:.{self.places}f}"
        return text.replace("-", "−")


@dataclass(frozen=True)
class Numbers:
    """Two scores and their difference as they are written.

    Attributes:
        unit: of the difference: percentage points (pp) where the scores are percentages.
    """

    before: str
    after: str
    delta: str
    low: str
    high: str
    unit: str

    @classmethod
    def of(cls, unit: str, before: float, after: float, interval: Interval) -> Numbers:
        """Write two scores of a unit and their difference."""
        notation = Notation.fit(unit, (before, after), interval)
        return cls(
            notation.plain(before),
            notation.plain(after),
            notation.signed(interval.delta),
            notation.signed(interval.low),
            notation.signed(interval.high),
            "pp" if notation.percent else unit,
        )


def p_value(p: float) -> str:
    """Three places, and no zero that is none."""
    return f"< {SMALLEST_P}" if p < SMALLEST_P else f"{p:.3f}"


def percent(value: float) -> str:
    """Such as 95%."""
    return f"{value * 100:.6g}%"
