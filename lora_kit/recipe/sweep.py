"""The recipe's `sweep` section: which fields are searched, how, and within which budget."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from lora_kit.recipe.section import Count, Section

SamplerName = Literal["tpe", "random", "gp"]
PrunerName = Literal["median", "hyperband", "none"]
# Sections whose fields are what is searched for; others say what is measured, or on what.
SEARCHED = ("adapter", "data", "training", "retention", "preference", "reward", "grpo")
# Parts of a trial's training; at the end of each but the last it may be given up.
PARTS = 4
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(SECONDS)}])")
SearchedValues = str | list[bool | int | float | str | None]


def duration_seconds(text: str) -> float:
    """Return the seconds of a duration such as `90s`, `30m`, `2h` or `1d`.

    Raises:
        ValueError: if it is none.
    """
    match = DURATION.fullmatch(text)
    if match is None or not float(match[1]):
        raise ValueError("is no duration. Fix: write one such as 30m or 2h")
    return float(match[1]) * SECONDS[match[2]]


def _named(value: Any) -> Any:
    if isinstance(value, dict) and any(not isinstance(name, str) for name in value):
        raise ValueError("names fields such as training.learning_rate. Fix: write them as texts")
    return value


class SweepSpec(Section):
    """Search for the fields' values; the recipe as it is always is one of the trials."""

    over: Annotated[dict[str, SearchedValues], Field(min_length=1), BeforeValidator(_named)]
    """Values by field: a range such as `1e-4..1e-3`, of whole numbers if both ends are, with
    `:log` behind it for a logarithmic scale; or a list of values."""
    trials: Annotated[Count, Field(ge=2)] = 20
    """Number of trials, that of the recipe as it is included."""
    seeds: Count = 1
    """Adapters of a trial, trained with the recipe's seed and those after it; their mean counts."""
    budget: str | None = None
    """Time of all trials together, over all workers, such as `2h`; the proof of the winner comes on
    top. Default: no limit."""
    sampler: SamplerName = "tpe"
    """Optuna's sampler of values: `tpe` (tree of Parzen estimators), `random`, or `gp` (Gaussian
    process)."""
    pruner: PrunerName = "median"
    """Optuna's pruner of trials by their validation loss while they train: `median`, `hyperband`
    or `none`."""

    @field_validator("over")
    @classmethod
    def _searchable(cls, over: dict[str, SearchedValues]) -> dict[str, SearchedValues]:
        for name in over:
            if name.partition(".")[0] not in SEARCHED or "." not in name:
                raise ValueError(
                    f"{name} is not searched: trials differ in how they are trained alone. Fix: "
                    f"name fields of {', '.join(SEARCHED)}"
                )
        return over

    @field_validator("budget")
    @classmethod
    def _is_duration(cls, budget: str | None) -> str | None:
        if budget is not None:
            duration_seconds(budget)
        return budget
