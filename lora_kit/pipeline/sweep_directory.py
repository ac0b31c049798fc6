"""Directory of a sweep: which sweep is in it, and which winners it has proved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_kit.recipe.identity import dotted_fields
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.temporaries import is_empty
from lora_kit.selection.sweep.record import SWEEP

RECIPE, INPUTS = "sweep.yaml", "inputs.json"
"""Recipe of a sweep, and digests of what its trials are trained on and compared by."""


def proved_before(directory: Path) -> list[int]:
    """Return the numbers of the trials that have won and been judged on half B already."""
    path = directory / SWEEP
    record = read_json(path, RecipeError) if path.is_file() else {}
    winner = record.get("winner")
    last = [] if winner is None else [winner["number"]]
    return sorted({*record.get("proved_before", []), *last})


def require_same_sweep(directory: Path, recipe: Recipe) -> None:
    """Refuse a directory of something else, and to go on with another sweep.

    Raises:
        RecipeError: naming what is there, or the fields that differ.
    """
    path = directory / RECIPE
    fix = "Fix: name another directory with --output"
    if directory.exists() and not directory.is_dir():
        raise RecipeError(f"{directory}: is a file, and a sweep is a directory. {fix}")
    if not path.is_file():
        if directory.is_dir() and not is_empty(directory):
            raise RecipeError(f"{directory}: is not empty, and no sweep (got no {RECIPE}). {fix}")
        return
    earlier = Recipe.load(path)
    if earlier.sweep is None:
        raise RecipeError(f"{path}: is of another sweep (got no field `sweep`). {fix}")
    before, now = _comparable(earlier), _comparable(recipe)
    different = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    if different:
        changes = "; ".join(f"{n}: {before.get(n)!r} -> {now.get(n)!r}" for n in different)
        raise RecipeError(f"{path}: is of another sweep (got {changes}). {fix}")


def require_same_inputs(directory: Path, digests: Mapping[str, str]) -> None:
    """Write what a new sweep measures with; refuse to go on with a sweep on anything else.

    Raises:
        RecipeError: naming what has changed.
    """
    path = directory / INPUTS
    if not path.is_file():
        write_json(path, dict(digests))
        return
    earlier = read_json(path, RecipeError)
    if changed := [name for name, digest in digests.items() if earlier.get(name) != digest]:
        raise RecipeError(
            f"{directory}: the sweep began with other inputs (got a change of {', '.join(changed)}"
            "). Fix: restore them, or name another directory with --output"
        )


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's fields without those that may change while a sweep goes on."""
    fields = dict(dotted_fields(recipe.model_dump(mode="json")))
    return {name: fields[name] for name in fields if name not in ("sweep.trials", "sweep.budget")}
