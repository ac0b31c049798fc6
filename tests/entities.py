"""Helpers for tests of token classifiers: words with tags, and a recipe that learns them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.recipe.recipe import Recipe
from tests.head_recipes import head_recipe, write_gain_suite, write_lines

# Words with their tags; each text has entities of one or two words, or none.
TEXTS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("flights", "O"), ("to", "O"), ("New", "B-place"), ("York", "I-place")),
    (("Ada", "B-person"), ("Lovelace", "I-person"), ("in", "O"), ("London", "B-place")),
    (("nothing", "O"), ("new", "O")),
    (("Ada", "B-person"), ("and", "O"), ("York", "B-place")),
)
TAGS = ("O", "B-person", "I-person", "B-place", "I-place")


def write_rows(path: Path, repeats: int, texts: Sequence[Any] = TEXTS) -> Path:
    """Write texts several times, each after a number of its own."""
    rows = [
        {
            "id": f"row {number}",
            "tokens": [str(number), *(word for word, _ in text)],
            "tags": ["O", *(tag for _, tag in text)],
        }
        for number, text in enumerate(list(texts) * repeats)
    ]
    return write_lines(path, rows)


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "names", "kind": "token_classification", "source": str(source), **own}
    return write_gain_suite(path, "entities", task)


def entities_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train, held_out, test = (
        write_rows(folder / f"{name}.jsonl", repeats)
        for name, repeats in (("train", 8), ("held-out", 2), ("test", 4))
    )
    data = {"validation": [{"source": str(held_out)}], **changes.pop("data", {})}
    suite = write_suite(folder / "suite.yaml", test)
    return head_recipe(
        model, "entities", "token-classification", train, suite, {"data": data, **changes}
    )
