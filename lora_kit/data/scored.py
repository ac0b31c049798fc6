"""Rows of a regression: the numbers of a row, by the names of the head's outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lora_kit.data.rows import Row
from lora_kit.data.strict_json import decode_cell
from lora_kit.recipe.regression import RegressionSpec
from lora_kit.runtime.errors import DataError

# Name of the number of a row that has a single one.
SCORE = "score"
EXAMPLE = '{"text": "...", "score": 3.5}'
EXAMPLES = f'{EXAMPLE} or {{"text": "...", "scores": {{"price": 3.5, "quality": 2}}}}'


def parse_number(value: object, field: str, origin: str) -> float:
    """Return the number of a field; a CSV file holds it as text.

    Raises:
        DataError: if it is none, or not finite.
    """
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise DataError(
            f"{origin}: {field}: not a number (got {value!r:.60}). Fix: write a number such as 3.5"
        )
    if not math.isfinite(number):
        raise DataError(
            f"{origin}: {field}: a number must be finite (got {value!r:.60}). Fix: correct or "
            "remove the row"
        )
    return float(number)


def parse_numbers(value: object, field: str, origin: str) -> dict[str, float]:
    """Return the numbers of a mapping of names to numbers; a CSV file holds it as JSON text.

    Raises:
        DataError: if it is none, is empty, or holds something that is no number.
    """
    read = decode_cell(value)
    if not isinstance(read, Mapping) or not read or not all(isinstance(n, str) for n in read):
        raise DataError(
            f"{origin}: {field}: not an object of names with numbers (got {value!r:.60}). Fix: "
            'write {"price": 3.5, "quality": 2}'
        )
    return {name: parse_number(one, f"{field}.{name}", origin) for name, one in read.items()}


def write_numbers(numbers: Mapping[str, float]) -> str:
    """Return numbers as JSON: a number alone if it is the only one and has no name of its own.

    Six significant digits are written.
    """
    rounded = {name: _shortest(float(f"{number:.6g}")) for name, number in numbers.items()}
    return json.dumps(rounded[SCORE] if list(rounded) == [SCORE] else rounded)


def _shortest(number: float) -> float | int:
    return int(number) if number.is_integer() else number


def read_numbers(text: str) -> dict[str, float]:
    """Return the numbers that `write_numbers` wrote."""
    value = json.loads(text)
    return value if isinstance(value, dict) else {SCORE: value}


def output_names(rows: Sequence[Row], spec: RegressionSpec) -> tuple[str, ...]:
    """Return the names of a regression's outputs, in order.

    Args:
        rows: training rows.
        spec: the recipe's `regression` section.

    Raises:
        DataError: if a row has no numbers, or not those of the other rows, or if all rows have the
            same number.
    """
    first = numbers_of(rows[0], None, "data.train")
    names = tuple(spec.outputs or sorted(first))
    table = np.array([list(numbers_of(row, names, "data.train").values()) for row in rows])
    for name, column in zip(names, table.T, strict=True):
        if np.ptp(column) == 0:
            raise DataError(
                f"data.train: all rows have the same number, so there is nothing to learn (got "
                f"{name} {column[0]:g} in {len(rows)} rows). Fix: add rows with other numbers"
            )
    return names


def numbers_of(row: Row, names: Sequence[str] | None, part: str) -> dict[str, float]:
    """Return the numbers of a row by name.

    Args:
        row: the row.
        names: names of the head's outputs; `None` for those of the row.
        part: part of the recipe's `data` that the row is from, for error messages.

    Raises:
        DataError: if the row has no numbers, or other ones than those named.
    """
    if row.values is None:
        raise DataError(
            f"{row.origin}: training.objective: regression needs a number in each row (got none). "
            f"Fix: give rows of {EXAMPLES}, or map the columns with {part}.N.columns"
        )
    if names is None:
        return dict(row.values)
    if set(names) != set(row.values):
        raise DataError(
            f"{row.origin}: scores: other numbers than those of the head (got "
            f"{', '.join(sorted(row.values))}; the head has {', '.join(names)}). Fix: correct the "
            "row, or name the numbers of all rows with regression.outputs"
        )
    return {name: row.values[name] for name in names}
