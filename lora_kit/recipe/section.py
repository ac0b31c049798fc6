"""Building blocks of recipes and suites: frozen models and constrained numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A frozen part of a YAML document; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    # Values of required fields, with which a document is checked further where they are invalid.
    placeholders: ClassVar[Mapping[str, Any]] = {}


def _not_a_bool(value: object) -> object:
    # Pydantic reads `true` as 1, so that `rank: true` would train an adapter of rank 1.
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _text_keys(value: Any) -> Any:
    # YAML reads the keys 1 and 2 of a mapping as numbers; classes are called so.
    if not isinstance(value, dict):
        return value
    return {
        str(key) if isinstance(key, int | float) and not isinstance(key, bool) else key: one
        for key, one in value.items()
    }


Count = Annotated[int, BeforeValidator(_not_a_bool), Field(ge=1)]
Whole = Annotated[int, BeforeValidator(_not_a_bool), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_not_a_bool), Field(gt=0)]
NotNegative = Annotated[float, BeforeValidator(_not_a_bool), Field(ge=0)]
# With 1, and without.
Share = Annotated[float, BeforeValidator(_not_a_bool), Field(ge=0, le=1)]
Fraction = Annotated[float, BeforeValidator(_not_a_bool), Field(ge=0, lt=1)]
Factors = Annotated[dict[str, Positive], BeforeValidator(_text_keys)]
