"""Known trap of a library, with functions that reproduce the trap and try its guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_kit.runtime.errors import LoraKitError


@dataclass(frozen=True)
class Trap:
    """Defect or behaviour of an underlying library that ruins results without an error.

    Attributes:
        name: short name.
        wrong: consequence of the trap.
        guard: prevention, and its place.
        is_present: returns true if the installed versions have the trap; `None` if that depends on
            the recipe.
        is_guarded: reproduces the trap on a specimen; returns true if it is prevented or refused.
    """

    name: str
    wrong: str
    guard: str
    is_present: Callable[[], bool] | None
    is_guarded: Callable[[], bool]


def is_refused(call: Callable[..., object], *arguments: Any) -> bool:
    """Return true if a call raises a LoraKitError."""
    try:
        call(*arguments)
    except LoraKitError:
        return True
    return False
