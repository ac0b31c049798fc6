"""Axes of parallel coordinates: places of values and ticks, from 0 (low end) to 1 (high end)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.plane import Tick, axis_scale
from lora_kit.recipe.sweep import NUMBER
from lora_kit.selection.sweep.outcome import HALF_WIDTHS, TrialOutcome, gain_is_percent
from lora_kit.selection.sweep.result import SweepResult
from lora_kit.selection.sweep.scatter import shown_gains, shown_shares

LOG_FACTOR = 20.0
"""Factor between the largest and the smallest number above which an axis is logarithmic."""
MOST_VALUES = 6
"""Maximum number of different numbers that are ticks themselves."""
PADDING = 0.06
"""Fraction of an axis of numbers that is left free at either end."""
SLOT = 0.14
"""Fraction of an axis that a value beside the numbers has, such as `null`."""
LOG_STEPS = (1, 2, 5)
# Resolution of `axis_scale`, which rounds coordinates to two decimals.
FINE = 1000.0


@dataclass(frozen=True)
class ParallelAxis:
    """Axis of a searched field, or of an outcome.

    Attributes:
        name: name of the axis.
        places: place of each trial that has a value, by its number.
        ticks: ticks.
        is_field: true for a searched field.
        is_category: true if no value is a number.
        allowed: place from which on the values pass; `None` for fields.
    """

    name: str
    places: Mapping[int, float]
    ticks: tuple[Tick, ...]
    is_field: bool = True
    is_category: bool = False
    allowed: float | None = None


def value_axis(name: str, texts: Mapping[int, str]) -> ParallelAxis:
    """Return the axis of a field.

    Numbers are on a linear scale, or on a logarithmic one if they span more than a factor of
    `LOG_FACTOR`. Other values are categories, below the numbers if there are any.

    Args:
        name: name of the axis.
        texts: value of each trial as YAML, by its number.
    """
    numbers = {text: value for text in texts.values() if (value := _number(text)) is not None}
    others = sorted({text for text in texts.values() if text not in numbers})
    slot = SLOT if numbers else 1 / max(1, len(others))
    slot = min(slot, 0.5 / len(others)) if numbers and others else slot
    places = {text: (rank + 0.5) * slot for rank, text in enumerate(others)}
    ticks = [Tick(places[text], text) for text in others]
    if numbers:
        start = slot * len(others)
        found, of_numbers = _scale(numbers, start)
        places |= found
        ticks += of_numbers
    by_trial = {trial: places[text] for trial, text in texts.items()}
    return ParallelAxis(name, by_trial, tuple(ticks), is_category=not numbers)


def _number(text: str) -> float | None:
    """Return the number that a YAML text is, also one such as 1e-4; `None` for other values."""
    if not re.fullmatch(NUMBER, text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _scale(numbers: Mapping[str, float], start: float) -> tuple[dict[str, float], list[Tick]]:
    """Return the place of each number between a start and 1, and ticks."""
    low, high = min(numbers.values()), max(numbers.values())
    is_log = low > 0 and high / low > LOG_FACTOR

    def place(value: float) -> float:
        if high == low:
            return start + (1 - start) / 2
        part = (
            math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)
        )
        return start + (1 - start) * (PADDING + part * (1 - 2 * PADDING))

    values = sorted(set(numbers.values()))
    if len(values) > MOST_VALUES:
        values = _log_values(low, high) if is_log else _linear_values(low, high)
    return {text: place(value) for text, value in numbers.items()}, [
        Tick(place(value), number_text(value)) for value in values
    ]


def number_text(value: float) -> str:
    """Return a number with at most four digits, such as 0.0002 or 5e-5."""
    return re.sub(r"e([+-])0*", lambda m: f"e{m[1]}".rstrip("+"), f"{value:.4g}").replace("-", "−")


def _log_values(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten within limits; of many, the powers alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (LOG_STEPS, (1,)):
        several = [step * 10.0**power for power in powers for step in steps]
        within = [value for value in several if low * 0.999 <= value <= high * 1.001]
        if len(within) <= 2 * MOST_VALUES:
            break
    return within


def _linear_values(low: float, high: float) -> list[float]:
    """Return round values within limits."""
    raw = (high - low) / (MOST_VALUES - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def outcome_axes(result: SweepResult, outcomes: Mapping[int, TrialOutcome]) -> list[ParallelAxis]:
    """Return the axes of gain and of forgetting, whose worst case decides; better is higher."""
    if not outcomes:
        return [ParallelAxis("gain", {}, (), False), ParallelAxis("forgetting", {}, (), False)]
    found = list(outcomes.values())
    unit = found[0].gain_unit
    y, y_ticks = axis_scale(
        shown_gains([one.gain for one in found]), 0.0, FINE, gain_is_percent(result.trials)
    )
    # Turned around: no forgetting is at the high end.
    x, x_ticks = axis_scale(shown_shares([one.forgotten for one in found]), FINE, 0.0, percent=True)
    return [
        ParallelAxis(
            f"gain, {'half-widths' if unit == HALF_WIDTHS else unit}",
            {number: y(one.gain[0]) / FINE for number, one in outcomes.items()},
            tuple(Tick(tick.at / FINE, tick.text) for tick in y_ticks),
            is_field=False,
            allowed=y(0.0) / FINE,
        ),
        ParallelAxis(
            "forgetting, worst case",
            {number: x(one.forgotten[2]) / FINE for number, one in outcomes.items()},
            tuple(Tick(tick.at / FINE, f"{tick.text}%") for tick in x_ticks),
            is_field=False,
            allowed=x(1.0) / FINE,
        ),
    ]


def fitting_ticks(ticks: Sequence[Tick], rooms: Sequence[float]) -> list[Tick]:
    """Return the ticks whose labels do not overlap those before them.

    Args:
        ticks: ticks of an axis.
        rooms: length that each label needs, as a fraction of the axis.
    """
    kept: list[tuple[Tick, float]] = []
    for tick, room in zip(ticks, rooms, strict=True):
        if all(abs(tick.at - other.at) >= (room + needs) / 2 for other, needs in kept):
            kept.append((tick, room))
    return [tick for tick, _ in kept]


def shortened(text: str, letters: int) -> str:
    """Return a text that is cut after a number of letters."""
    return text if len(text) <= max(letters, 2) else f"{text[: max(letters, 2) - 1]}…"
