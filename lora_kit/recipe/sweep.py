"""The recipe's `sweep` section: which fields are searched, how, and within which budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, field_validator

from lora_kit.recipe.section import Count, Section

SamplerName = Literal["tpe", "random", "gp"]
PrunerName = Literal["median", "hyperband", "none"]
# Sections whose fields are what is searched for; others say what is measured, or on what.
SEARCHED = ("adapter", "data", "training", "retention", "preference", "reward", "grpo", "sdft")
NOT_SEARCHED = {
    "training.objective": "trials of one sweep learn the same. Fix: sweep each objective apart",
    "data.validation": "trials are compared by the loss on the same rows. Fix: set it with --set",
    "data.cross_validation": "folds are no trials. Fix: leave it out",
}
# Parts of a trial's training; at the end of each but the last it may be given up.
PARTS = 4
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(SECONDS)}])")
SearchedValues = str | list[bool | int | float | str | None]
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")
EXAMPLES = "`1e-4..1e-3:log` or `8,16,32`"


@dataclass(frozen=True)
class SearchedRange:
    """Range of numbers.

    Attributes:
        low: lower end.
        high: upper end.
        log: true for a logarithmic scale.
        whole: true for whole numbers.
    """

    low: float
    high: float
    log: bool
    whole: bool


def read_values(values: SearchedValues) -> SearchedRange | tuple[str, ...]:
    """Return a range, or a list of values as YAML.

    Raises:
        ValueError: if they are neither, or the range or the list is empty or names a value twice.
    """
    if isinstance(values, str) and (match := RANGE.fullmatch(values.strip())):
        low, high, log = float(match[1]), float(match[2]), bool(match[3])
        if low >= high or (log and low <= 0):
            need = "from a positive number to a larger one" if log else "to a larger number"
            raise ValueError(f"a range goes {need}. Fix: write it as {EXAMPLES}")
        whole = all(re.fullmatch(r"[+-]?\d+", one) for one in (match[1], match[2]))
        return SearchedRange(low, high, log, whole)
    if isinstance(values, str):
        texts = tuple(one.strip() for one in values.split(","))
    else:
        texts = tuple(map(as_yaml, values))
    try:
        differ = len(set(map(read_scalar, texts))) == len(texts)
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(
            f"not a list of single values. Fix: write it as {EXAMPLES}, and search the parts of a "
            "section or a list by their own names"
        ) from error
    if len(texts) < 2 or not all(texts) or not differ:
        raise ValueError(
            f"not a range, and not a list of different values. Fix: write it as {EXAMPLES}"
        )
    return texts


def read_scalar(text: str) -> Any:
    """Return the value of a YAML scalar; 1e-3, which PyYAML takes for a text, is a number."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def as_yaml(value: Any) -> str:
    """Return a scalar as YAML, where a number with an exponent has a point as well."""
    return yaml.safe_dump(value).removesuffix("\n...\n").strip()


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
        for name, values in over.items():
            if name.partition(".")[0] not in SEARCHED or "." not in name:
                raise ValueError(
                    f"{name} is not searched: trials differ in how they are trained alone. Fix: "
                    f"name fields of {', '.join(SEARCHED)}"
                )
            if (reason := NOT_SEARCHED.get(".".join(name.split(".")[:2]))) is not None:
                raise ValueError(f"{name} is not searched: {reason}")
            try:
                read_values(values)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return over

    @field_validator("budget")
    @classmethod
    def _is_duration(cls, budget: str | None) -> str | None:
        if budget is not None:
            duration_seconds(budget)
        return budget
