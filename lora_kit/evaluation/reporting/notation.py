"""Number formatting in reports: units, signs and decimal places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.cut_answers import CUT_OFF
from lora_kit.evaluation.scores import ITEM_UNITS
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.thoughts import UNENDED
from lora_kit.statistics.decisions import Interval

MAX_PLACES = 6
SMALLEST_P = 0.001
"""Smallest p-value that is written as a number; smaller ones are written as `< 0.001`."""


def is_percent(unit: str) -> bool:
    """Return true if scores of this unit are fractions, which are written in percent."""
    return unit in ("followed", "preferred", CUT_OFF, UNENDED) or unit.startswith("accuracy")


def item_unit(task: TaskVerdict) -> str:
    """Return the unit of single items' scores; that of macro-F1 is for all items together only."""
    return ITEM_UNITS.get(task.unit, task.unit)


@dataclass(frozen=True)
class Notation:
    """Number format of a task: fractions in percent, their differences in percentage points.

    Attributes:
        percent: if true, scores are written in percent.
        places: decimal places.
    """

    percent: bool
    places: int

    @classmethod
    def of(cls, task: TaskVerdict) -> Notation:
        """Return the format of a task, precise at its threshold: zero, or minus the margin."""
        return cls.fit(task.unit, (task.base, task.adapter), task.interval, task.threshold)

    @classmethod
    def fit(
        cls, unit: str, scores: Sequence[float], interval: Interval, threshold: float = 0.0
    ) -> Notation:
        """Return a format with enough places to tell the interval's ends from a threshold.

        Args:
            unit: unit of the scores.
            scores: scores, whose size sets the minimum number of places.
            interval: interval of the difference.
            threshold: value that the interval is compared with.
        """
        percent = is_percent(unit)
        size = max(abs(score) for score in scores)
        min_places = 1 if percent or size >= 100 else 2 if size >= 10 else 3
        ends = [end for end in (interval.low, interval.high) if end != threshold]
        for places in range(min_places, MAX_PLACES):
            notation = cls(percent, places)
            if all(notation.signed(end) != notation.signed(threshold) for end in ends):
                return notation
        return cls(percent, min_places)

    def plain(self, value: float) -> str:
        """Format a score."""
        return self._format(value, "") + ("%" if self.percent and math.isfinite(value) else "")

    def signed(self, value: float) -> str:
        """Format a difference, with its sign and without a percent sign."""
        return self._format(value, "+")

    def _format(self, value: float, sign: str) -> str:
        if math.isnan(value):
            return "not a number"
        if math.isinf(value):
            return "+∞" if value > 0 else "−∞"
        # Round first, so that a value that rounds to zero is written without a sign.
        rounded = round(value * 100 if self.percent else value, self.places)
        text = f"{rounded:{sign}.{self.places}f}" if rounded else f"{0:.{self.places}f}"
        return text.replace("-", "−")


@dataclass(frozen=True)
class FormattedComparison:
    """Two formatted scores and their difference with its interval.

    Attributes:
        before: score of the first arm.
        after: score of the second arm.
        delta: difference.
        low: lower end of the interval.
        high: upper end of the interval.
        unit: unit of the difference; percentage points (pp) if the scores are in percent.
    """

    before: str
    after: str
    delta: str
    low: str
    high: str
    unit: str

    @classmethod
    def of(
        cls,
        unit: str,
        before: float,
        after: float,
        interval: Interval,
        notation: Notation | None = None,
    ) -> FormattedComparison:
        """Format two scores of a unit and the interval of their difference."""
        notation = notation or Notation.fit(unit, (before, after), interval)
        return cls(
            notation.plain(before),
            notation.plain(after),
            notation.signed(interval.delta),
            notation.signed(interval.low),
            notation.signed(interval.high),
            "pp" if notation.percent else unit,
        )


def format_p_value(p: float) -> str:
    """Format a p-value with three decimal places, such as 0.012 or < 0.001."""
    return f"< {SMALLEST_P}" if p < SMALLEST_P else f"{p:.3f}"


def format_percent(value: float) -> str:
    """Format a fraction in percent, such as 95%."""
    return f"{value * 100:.6g}%"
