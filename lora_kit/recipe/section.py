"""Building blocks of recipes and suites: frozen models and constrained numbers."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

T = TypeVar("T")
LicenseName = Annotated[str, Field(min_length=1, max_length=200)]


class Section(BaseModel):
    """A frozen part of a YAML document; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    # Values of required fields, with which a document is checked further where they are invalid.
    placeholders: ClassVar[Mapping[str, Any]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        forms = _forms(cls.model_fields[str(info.field_name)].annotation)
        return _not_a_bool(value) if not forms.isdisjoint((int, float)) else value


def written_fields(model: type[Section]) -> dict[str, FieldInfo]:
    """Return the fields that are written by hand, without those that only files of ours have."""
    in_schema = model.model_json_schema()["properties"]
    return {name: field for name, field in model.model_fields.items() if name in in_schema}


def inner_section(annotation: Any) -> tuple[type[Section] | None, bool]:
    """Return the section that a field holds, and whether the field is a list of sections."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for argument in get_args(annotation):
        inner, is_list = inner_section(argument)
        if inner is not None:
            return inner, is_list or get_origin(annotation) is list
    return None, False


def _not_a_bool(value: object) -> object:
    # Pydantic reads `true` as 1, so that `rank: true` would train an adapter of rank 1.
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _forms(annotation: Any) -> set[Any]:
    """Return the types that a field's value may have."""
    if get_origin(annotation) not in (Annotated, Union, UnionType):
        return {annotation}
    return set[Any]().union(*(_forms(one) for one in get_args(annotation)))


def _text_keys(value: Any) -> Any:
    # YAML reads the keys 1 and 2 of a mapping as numbers; classes are called so.
    if not isinstance(value, dict):
        return value
    return {
        str(key) if isinstance(key, int | float) and not isinstance(key, bool) else key: one
        for key, one in value.items()
    }


def _distinct(names: list[T]) -> list[T]:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"names {name} twice. Fix: name each once")
    return names


# A field that narrows one of these bounds has to say so inside `Annotated`: of two bounds of one
# kind pydantic keeps the last, and a default's `Field(...)` comes first.
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
# With 1, and without.
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Distinct = Annotated[list[T], AfterValidator(_distinct)]
Factors = Annotated[
    dict[str, Annotated[Positive, BeforeValidator(_not_a_bool)]], BeforeValidator(_text_keys)
]
