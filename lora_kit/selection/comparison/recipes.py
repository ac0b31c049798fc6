"""Fields in which the recipes and records of runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_kit.recipe.document import read_document
from lora_kit.recipe.identity import dotted_fields
from lora_kit.runs.directory import RunDirectory

ONLY_NAMES = ("name",)
"""Fields that name a run and change nothing of what it does."""
ABSENT = "—"
SHOWN_DIGITS = 10
"""Digits of digests that are shown."""


@dataclass(frozen=True)
class FieldRow:
    """Field in which runs differ, in a table with a column for each run.

    Attributes:
        name: name of the field.
        values: value of each run.
    """

    name: str
    values: tuple[str, ...]


def recipe_rows(runs: Sequence[RunDirectory]) -> tuple[FieldRow, ...]:
    """Return the fields in which the recipes differ, in the order of the recipes.

    Raises:
        RecipeError: if a recipe cannot be read.
    """
    # A section that is left out in one recipe is a single field there: its inner fields are absent.
    recipes = [dict(dotted_fields(read_document(run.recipe).value)) for run in runs]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    return differing(
        [
            (name, [_written(recipe[name]) if name in recipe else ABSENT for recipe in recipes])
            for name in names
            if name not in ONLY_NAMES
        ]
    )


def setup_rows(
    records: Sequence[Mapping[str, Any]], adapters: Sequence[str]
) -> tuple[FieldRow, ...]:
    """Return facts of the trainings, then the versions, data and machines that differ.

    Args:
        records: `run.json` of each run.
        adapters: digest of each adapter.
    """
    trainings = [record.get("training") or {} for record in records]
    facts = [
        FieldRow("adapter (sha256)", tuple(one[:SHOWN_DIGITS] or ABSENT for one in adapters)),
        FieldRow("seed", tuple(_written(one.get("seed", ABSENT)) for one in records)),
        FieldRow("steps", tuple(_count(one.get("steps")) for one in trainings)),
        FieldRow("tokens", tuple(_count(one.get("tokens")) for one in trainings)),
        FieldRow("seconds", tuple(_count(one.get("seconds")) for one in trainings)),
    ]
    digests = [(record.get("data") or {}).get("digest", ABSENT) for record in records]
    others = [
        ("training rows (digest)", [_written(one)[:SHOWN_DIGITS] for one in digests]),
        *_parts(records, "versions"),
        *_parts(records, "machine"),
    ]
    return (*facts, *differing(others))


def differing(rows: Sequence[tuple[str, Sequence[str]]]) -> tuple[FieldRow, ...]:
    """Return the rows whose values are not all the same."""
    return tuple(FieldRow(name, tuple(values)) for name, values in rows if len(set(values)) > 1)


def _parts(records: Sequence[Mapping[str, Any]], part: str) -> list[tuple[str, list[str]]]:
    found = [record.get(part) or {} for record in records]
    names = dict.fromkeys(name for one in found for name in one)
    return [
        (
            name if part == "versions" else f"{part}: {name}",
            [_written(one.get(name, ABSENT)) for one in found],
        )
        for name in names
    ]


def _written(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_written, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else ABSENT
