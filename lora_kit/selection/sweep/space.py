"""Search space: the values that each field of a recipe may have in a trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sweep import (
    SearchedRange,
    SearchedValues,
    SweepSpec,
    as_yaml,
    read_scalar,
    read_values,
)
from lora_kit.runtime.errors import RecipeError

if TYPE_CHECKING:
    from optuna.trial import Trial

# Digits of a number that is drawn.
DIGITS = 4
# From assignments such as `adapter.rank=8` to the recipe with them.
WithValues = Callable[[Sequence[str]], Recipe]


@dataclass(frozen=True)
class Dimension:
    """Field of a recipe, and its values.

    Attributes:
        field: dotted name.
        choices: values as YAML; empty for a range.
        low: lower end of a range.
        high: upper end of a range.
        log: true for a logarithmic scale.
        whole: true for whole numbers.
    """

    field: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @classmethod
    def of(cls, field: str, values: SearchedValues) -> Dimension:
        """Return the dimension of a field's values, which the recipe's section has checked."""
        found = read_values(values)
        if isinstance(found, SearchedRange):
            return cls(field, (), found.low, found.high, found.log, found.whole)
        return cls(field, found)

    def suggest(self, trial: Trial) -> str:
        """Return the field's value in a trial, as YAML."""
        if self.choices:
            return str(trial.suggest_categorical(self.field, self.choices))
        if self.whole:
            low, high = int(self.low), int(self.high)
            return str(trial.suggest_int(self.field, low, high, log=self.log))
        value = trial.suggest_float(self.field, self.low, self.high, log=self.log)
        return as_yaml(float(f"{value:.{DIGITS}g}"))

    def parameter(self, value: Any) -> Any:
        """Return Optuna's parameter of a field's value; `None` if the value is not in the space."""
        if self.choices:
            return next((one for one in self.choices if read_scalar(one) == value), None)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:
            return None
        if self.whole:
            return int(value) if value == int(value) else None
        return float(value)

    @property
    def checked(self) -> tuple[str, ...]:
        """Values that the recipe is checked with: all choices, or both ends and one between."""
        if self.choices:
            return self.choices
        if self.whole:
            return tuple(map(as_yaml, (int(self.low), int(self.high))))
        # No whole number, unless the field takes no other.
        between = float(f"{self.low + (self.high - self.low) * 0.3819:.{DIGITS}g}")
        return tuple(map(as_yaml, (self.low, self.high, between)))


def search_space(over: Mapping[str, SearchedValues], with_values: WithValues) -> list[Dimension]:
    """Return the dimensions of a search, after a look at each value in the recipe.

    A value that the recipe refuses may work beside the values of the other fields.

    Args:
        over: values by field.
        with_values: function from assignments to the recipe with them.

    Raises:
        RecipeError: if a field is unknown, or the recipe refuses a value of it.
    """
    dimensions = [Dimension.of(field, values) for field, values in over.items()]
    for one in dimensions:
        others = [f"{other.field}={other.checked[0]}" for other in dimensions if other != one]
        for value in one.checked:
            try:
                with_values([f"{one.field}={value}"])
            except RecipeError as refused:
                try:
                    with_values([*others, f"{one.field}={value}"])
                except RecipeError:
                    raise refused from None
    return dimensions


def field_value(recipe: Recipe, field: str) -> Any:
    """Return the value of a recipe's field by its dotted name; `None` where a section is left out.

    Args:
        recipe: the recipe.
        field: dotted name, with numbers for entries of lists.
    """
    value: Any = recipe.model_dump(mode="json")
    for part in field.split("."):
        if isinstance(value, list):
            value = value[int(part)] if part.isdigit() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def own_values(recipe: Recipe, dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """Return the parameters of the recipe's own values by field; `None` outside of the space."""
    return {one.field: one.parameter(field_value(recipe, one.field)) for one in dimensions}


def require_own_values(recipe: Recipe, spec: SweepSpec, dimensions: Sequence[Dimension]) -> None:
    """Refuse with RecipeError a sampler that would draw at random beside the recipe as it is."""
    own = own_values(recipe, dimensions)
    if spec.sampler == "gp" and (outside := [name for name in own if own[name] is None]):
        raise RecipeError(
            "sweep.sampler: gp learns nothing of a recipe whose own values are not among those "
            f"that are searched (got gp, and {', '.join(outside)} outside). Fix: search the "
            "recipe's values as well, or use tpe"
        )
