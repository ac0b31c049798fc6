"""What of a recipe a training is bound to, as one hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_kit.digests import json_sha256
from lora_kit.schema import read_document


def recipe_digest(path: Path) -> str:
    """The sha256 of what a run's recipe says but for its licences, which may be stated later.

    Of the file's fields and not of the validated recipe: another version may know more of them.

    Raises:
        RecipeError: if it is no YAML mapping.
    """
    said = _without_licences(read_document(path).value)
    return json_sha256(said)


def _without_licences(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the `license` of its backbone and of its sources; `columns` may have one.

    And without `merge`: what was merged, and how, its own record says, and it is measured after.
    """
    recipe = {name: value for name, value in recipe.items() if name != "merge"}
    data, kept = _mapping(recipe.get("data")), _mapping(recipe.get("retention"))
    sources = {
        name: [_unlicensed(one) for one in data[name]]
        for name in ("train", "validation")
        if isinstance(data.get(name), list)
    }
    return recipe | {
        "backbone": _unlicensed(recipe.get("backbone")),
        "data": {**data, **sources, "replay": _unlicensed(data.get("replay"))},
        **({"retention": {name: _unlicensed(one) for name, one in kept.items()}} if kept else {}),
    }


def _unlicensed(part: Any) -> Any:
    return {k: v for k, v in part.items() if k != "license"} if isinstance(part, dict) else part


def _mapping(part: Any) -> dict[str, Any]:
    return part if isinstance(part, dict) else {}
