"""Helpers for tests of masked language models: texts, and a recipe that learns them."""

from pathlib import Path
from typing import Any

from lora_kit.recipe.recipe import Recipe
from tests.embedding import COLOURS, FRUITS
from tests.head_recipes import head_recipe, write_gain_suite, write_lines


def texts(count: int, start: int = 0) -> list[dict[str, str]]:
    """Return texts of a fruit with its colour, in clusters of three."""
    return [
        {
            "text": f"the {FRUITS[number % 8]} of number {number} is {COLOURS[number % 8]} .",
            "cluster": f"cluster {number // 3}",
        }
        for number in range(start, start + count)
    ]


def mlm_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    """Return a recipe that trains on 48 texts, with twelve held out and a task of six others."""
    source, held_out, test = (
        write_lines(folder / f"{name}.jsonl", [{"text": one["text"]} for one in rows])
        for name, rows in (("train", texts(48)), ("held", texts(12, 60)), ("test", texts(6, 100)))
    )
    task = {"name": "texts", "kind": "loss", "source": str(test), "max_length": 32}
    suite = write_gain_suite(folder / "reading.yaml", "reading", task)
    data = {
        "train": [{"source": str(source)}],
        "validation": [{"source": str(held_out)}],
        **changes.pop("data", {}),
    }
    return head_recipe(model, "mlm", "mlm", source, suite, {"data": data, **changes})
