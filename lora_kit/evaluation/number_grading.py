"""Grading of numbers that a head gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lora_kit.data.scored import read_numbers, write_numbers
from lora_kit.evaluation.item import Graded, Item, Outcome


def grade_numbers(item: Item, outcome: Outcome, *, variances: Sequence[float]) -> Graded:
    """Compute the squared error, divided by the variance of the task, mean over the outputs.

    An item with a prediction that is not finite has no score.

    Args:
        item: item with its numbers.
        outcome: predictions in the order of the outputs, or the numbers of another row as text.
        variances: variance of each output over the items of the task.
    """
    predicted = _predicted(item.targets, outcome)
    if not all(map(math.isfinite, predicted)):
        return Graded(None, "")
    errors = np.subtract(predicted, list(item.targets.values()))
    score = float(np.mean(errors**2 / np.array(variances)))
    return Graded(score, write_numbers(dict(zip(item.targets, predicted, strict=True))))


def _predicted(numbers: Mapping[str, float], outcome: Outcome) -> tuple[float, ...]:
    if not outcome.text:
        return outcome.log_likelihoods
    given = read_numbers(outcome.text)
    return tuple(given.get(name, math.nan) for name in numbers)
