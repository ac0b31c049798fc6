"""The recipe: one YAML file that describes a whole run, validated before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import model_validator

from lora_kit.recipe.bundled import bundled_names, find_document
from lora_kit.recipe.document import override, read_document
from lora_kit.recipe.load import conflicts_error, validate
from lora_kit.recipe.rules import check
from lora_kit.recipe.sections import RecipeSections

RECIPE_FOLDERS = ("recipes",)


class Recipe(RecipeSections):
    """A whole run: backbone, adapter, data, training, retention, evaluation and merge."""

    @model_validator(mode="after")
    def _check_rules(self) -> Recipe:
        if problems := check(self):
            raise conflicts_error(problems)
        return self

    @classmethod
    def load(cls, reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe.

        Args:
            reference: a path, or the name of a bundled recipe.
            overrides: assignments such as `training.epochs=2`.

        Raises:
            RecipeError: with all problems at once, each with its line.
        """
        document = read_document(find_document(str(reference), RECIPE_FOLDERS, "recipe"))
        for assignment in overrides:
            document = override(document, assignment)
        return validate(cls, document)


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    return bundled_names(RECIPE_FOLDERS)
