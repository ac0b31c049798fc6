"""Rules about `data`: which mixture of sources a recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections


def one_kind_of_mixture(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse weights for some sources only, and weights beside a temperature."""
    data = recipe.data
    weighted = sum(source.weight is not None for source in data.train)
    if 0 < weighted < len(data.train):
        yield conflict(
            "data.train",
            reason=f"{weighted} of {len(data.train)} sources have a weight",
            fix="give every source a weight, or none",
        )
    if weighted and data.temperature is not None:
        yield conflict(
            "data.temperature",
            "data.train",
            reason="weights and a temperature exclude one another",
            given=data.temperature,
            fix="remove the temperature or the weights",
        )


def mixture_options_without_mixture(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse options of a mixture where there is none."""
    data = recipe.data
    if data.temperature is not None and len(data.train) == 1 and data.rows is None:
        yield conflict(
            "data.temperature",
            reason="mixes several sources, and data.train has one",
            given=data.temperature,
        )
    is_mixture = data.temperature is not None or any(s.weight is not None for s in data.train)
    if data.rows is not None and not is_mixture:
        yield conflict(
            "data.rows",
            reason="is the size of a mixture, and the sources have no weights",
            given=data.rows,
            fix="give the sources weights, or set a limit for each",
        )
