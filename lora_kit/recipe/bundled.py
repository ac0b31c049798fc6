"""YAML files that ship with the package: recipes and suites by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_kit.runtime.errors import RecipeError, did_you_mean

# In a wheel the files lie inside the package, in a checkout beside it.
PACKAGE = Path(__file__).parents[1]
ROOTS = (PACKAGE, PACKAGE.parent)


def bundled_names(folders: Sequence[str]) -> list[str]:
    """Return the names of all YAML files in the folders, without their endings."""
    found = (root / folder for root in ROOTS for folder in folders)
    return sorted({path.stem for folder in found for path in folder.glob("*.yaml")})


def find_document(reference: str, folders: Sequence[str], noun: str) -> Path:
    """Return the file that a path or a bundled name stands for.

    Args:
        reference: a path, or a name such as `quickstart`.
        folders: where bundled files may lie, relative to the package or to the checkout.
        noun: kind of document, for the error message.

    Raises:
        RecipeError: if there is no such file, with the bundled names.
    """
    path = Path(reference)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"{reference}: no such file")
    for root in ROOTS:
        for folder in folders:
            bundled = root / folder / f"{reference}.yaml"
            if bundled.is_file():
                return bundled
    names = bundled_names(folders)
    raise RecipeError(
        f"{reference}: neither a file nor a bundled {noun}.{did_you_mean(reference, names)} "
        f"Bundled: {', '.join(names)}"
    )
