"""Helpers for tests of embeddings: pairs of texts, and a recipe that learns them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.data.rows import Row
from lora_kit.data.supervision import Example
from lora_kit.data.units import Unit
from lora_kit.recipe.recipe import Recipe
from tests.head_recipes import head_recipe, write_gain_suite, write_lines

FRUITS = ("apple", "pear", "plum", "cherry", "fig", "grape", "lemon", "lime")
COLOURS = ("red", "green", "blue", "brown", "white", "black", "grey", "pink")


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    """Return pairs of a number with a fruit and with its colour, in clusters of three."""
    return [
        {
            "anchor": f"{FRUITS[number % 8]} {number}",
            "positive": f"{COLOURS[number % 8]} {number // 8}",
            "cluster": f"cluster {number // 3}",
        }
        for number in range(start, start + count)
    ]


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "found", "kind": "retrieval", "source": str(source), **own}
    return write_gain_suite(path, "finding", task)


def embedding_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train = write_lines(folder / "train.jsonl", pairs(48))
    suite = write_suite(folder / "finding.yaml", write_lines(folder / "test.jsonl", pairs(24, 100)))
    training = {"batch_size": 8, **changes.pop("training", {})}
    return head_recipe(model, "embed", "embedding", train, suite, {"training": training, **changes})


def unit(*texts: Sequence[int]) -> Unit:
    """Return a pair or a triplet of token ids."""
    return Unit(Row("", ""), tuple(Example(tuple(ids), tuple(ids)) for ids in texts))
