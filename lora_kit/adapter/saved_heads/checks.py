"""Checks of the files that describe a saved head."""

from __future__ import annotations

import math

RESTORE = "Fix: restore the file from the run that trained the adapter"


def are_numbers(value: object) -> bool:
    """Return true for an object of names with finite numbers that is not empty."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(one, int | float) and math.isfinite(one) for one in value.values())
    )
