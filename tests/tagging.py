"""Helpers for tests of multi-label heads: rows with labels, and a recipe that learns them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.recipe.recipe import Recipe
from tests.head_recipes import head_recipe, write_gain_suite, write_lines

WORDS = {"fruit": "apple", "metal": "iron", "bird": "heron"}
SETS = ((), ("fruit",), ("metal",), ("bird",), ("fruit", "metal"), ("bird", "fruit"))


def write_rows(path: Path, sets: Sequence[Sequence[str]]) -> Path:
    """Write texts with a word for each of their labels."""
    rows = [
        {
            "id": f"row {number}",
            "text": " and ".join([f"number {number}", *(WORDS[label] for label in labels)]),
            "labels": list(labels),
        }
        for number, labels in enumerate(sets)
    ]
    return write_lines(path, rows)


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "kinds", "kind": "multi_label", "source": str(source), **own}
    return write_gain_suite(path, "tags", task)


def labels_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train = write_rows(folder / "train.jsonl", SETS * 6)
    held_out = write_rows(folder / "held-out.jsonl", SETS * 2)
    test = write_rows(folder / "test.jsonl", SETS * 3)
    data = {"validation": [{"source": str(held_out)}], **changes.pop("data", {})}
    suite = write_suite(folder / "tags.yaml", test, score="macro_f1")
    return head_recipe(model, "tags", "multi-label", train, suite, {"data": data, **changes})
