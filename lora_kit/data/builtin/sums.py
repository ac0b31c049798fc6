"""`sums`: generated additions with verifiable answers.

The numbers do not overlap with the arithmetic items of the evaluation, whose larger number is below
60.
"""

from __future__ import annotations

from functools import cache

from lora_kit.data.rows import Message, Row

LARGER, SMALLER = range(61, 100), range(11, 40)


@cache
def sum_rows() -> tuple[Row, ...]:
    """Return all sums of a number in `LARGER` and one in `SMALLER`, each its own cluster."""
    return tuple(
        Row(
            origin=f"{a}-plus-{b}",
            cluster=f"{a}-plus-{b}",
            messages=(
                Message("user", f"What is {a} + {b}?"),
                Message("assistant", f"{a} + {b} = {a + b}"),
            ),
            completion_from=1,
        )
        for a in LARGER
        for b in SMALLER
    )
