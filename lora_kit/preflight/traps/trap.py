"""One trap: what goes wrong, where it is guarded, and two ways to try that out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_kit.runtime.errors import LoraKitError


@dataclass(frozen=True)
class Trap:
    """A defect or a habit of the libraries below that ruins results without an error.

    Attributes:
        name: in a few words.
        wrong: what goes wrong.
        guard: what is done against it, and where.
        is_there: shows it in the installed versions; `None` where it depends on what is brought.
        is_caught: runs into it on a specimen; true if that is prevented or refused.
    """

    name: str
    wrong: str
    guard: str
    is_there: Callable[[], bool] | None
    is_caught: Callable[[], bool]


def refused(call: Callable[..., object], *arguments: Any) -> bool:
    """Whether a call ends with an error that tells the user what to do."""
    try:
        call(*arguments)
    except LoraKitError:
        return True
    return False
