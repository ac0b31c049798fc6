"""The recipe: one YAML file that describes a whole run, validated before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import model_validator

from lora_kit.recipe.bundled import bundled_names, find_document
from lora_kit.recipe.document import Document, override, read_document
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
        return cls.of(recipe_document(reference), overrides)

    @classmethod
    def of(cls, document: Document, overrides: Sequence[str] = ()) -> Recipe:
        """Return the recipe of a document that has been read.

        Args:
            document: the document.
            overrides: assignments such as `training.epochs=2`.

        Raises:
            RecipeError: with all problems at once, each with its line.
        """
        for assignment in overrides:
            document = override(document, assignment)
        return validate(cls, document)


def recipe_document(reference: str | Path) -> Document:
    """Read the document of a recipe.

    Args:
        reference: a path, or the name of a bundled recipe.

    Raises:
        RecipeError: if there is none, or it is no YAML mapping.
    """
    return read_document(find_document(str(reference), RECIPE_FOLDERS, "recipe"))


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    return bundled_names(RECIPE_FOLDERS)
