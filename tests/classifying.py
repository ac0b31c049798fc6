"""Helpers for tests of classifiers: rows of three classes, and a recipe that learns them."""

from pathlib import Path
from typing import Any

from lora_kit.recipe.recipe import Recipe
from tests.head_recipes import head_recipe, write_gain_suite, write_lines

WORDS = {"fruit": "apple pear plum", "metal": "iron copper zinc", "bird": "heron wren crow"}


def write_rows(path: Path, sizes: dict[str, int]) -> Path:
    rows = [
        {"id": f"{label}/{n}", "text": f"number {n} of {WORDS[label].split()[n % 3]}s",
         "label": label}
        for label, size in sizes.items()
        for n in range(size)
    ]  # fmt: skip
    return write_lines(path, rows)


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "kind", "kind": "classification", "source": str(source), **own}
    return write_gain_suite(path, "kinds", task)


def classes_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train = write_rows(folder / "train.jsonl", {"fruit": 12, "metal": 6, "bird": 6})
    test = write_rows(folder / "test.jsonl", {"fruit": 5, "metal": 4, "bird": 3})
    suite = write_suite(folder / "kinds.yaml", test)
    return head_recipe(model, "kinds", "classification", train, suite, changes)
