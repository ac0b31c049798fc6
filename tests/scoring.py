"""Helpers for tests of regressions: rows with numbers, and a recipe that learns them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.recipe.recipe import Recipe
from tests.head_recipes import head_recipe, write_gain_suite, write_lines


def write_rows(path: Path, numbers: Sequence[int], names: Sequence[str] = ()) -> Path:
    """Write texts that repeat a word a number of times; with names, several numbers each."""
    rows = [
        {
            "id": f"{place}/{number}",
            "text": f"text {place}: " + "very " * number + "good",
            **({"scores": {n: 100 + 10 * number + k for k, n in enumerate(names)}} if names else
               {"score": 100 + 10 * number}),
        }
        for place, number in enumerate(numbers)
    ]  # fmt: skip
    return write_lines(path, rows)


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "praise", "kind": "regression", "source": str(source), **own}
    return write_gain_suite(path, "praises", task)


def numbers_recipe(model: Path, folder: Path, names: Sequence[str] = (), **changes: Any) -> Recipe:
    train = write_rows(folder / "train.jsonl", [0, 1, 2, 3, 4, 5] * 4, names)
    test = write_rows(folder / "test.jsonl", [5, 0, 3, 4, 1, 2] * 5, names)
    suite = write_suite(folder / "praises.yaml", test)
    return head_recipe(model, "praises", "regression", train, suite, changes)
