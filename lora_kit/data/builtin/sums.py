"""`sums`: generated additions with an answer that can be verified.

Of numbers that the evaluation's own arithmetic does not have: there the larger number is below 60.
"""

from __future__ import annotations

from functools import cache

from lora_kit.data.rows import Message, Row

LARGER, SMALLER = range(61, 100), range(11, 40)


@cache
def sum_rows() -> tuple[Row, ...]:
    """Every sum of one number of `LARGER` and one of `SMALLER`, each a cluster."""
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
