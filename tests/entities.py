"""Helpers for tests of token classifiers: words with tags, and a recipe that learns them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_kit.recipe.recipe import Recipe

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
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(path: Path, source: Path, **own: Any) -> Path:
    task = {"name": "names", "kind": "token_classification", "source": str(source), **own}
    path.write_text(yaml.safe_dump({"name": "entities", "role": "gain", "tasks": [task]}))
    return path


def entities_recipe(model: Path, folder: Path, **changes: Any) -> Recipe:
    train, held_out, test = (
        write_rows(folder / f"{name}.jsonl", repeats)
        for name, repeats in (("train", 8), ("held-out", 2), ("test", 4))
    )
    document: dict[str, Any] = {
        "name": "entities",
        "backbone": {"model": str(model), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {
            "train": [{"source": str(train)}],
            "validation": [{"source": str(held_out)}],
            "max_length": 32,
            "audit": {"leakage": 1.0},
        },
        "training": {
            "objective": "token-classification",
            "batch_size": 4,
            "learning_rate": 1e-2,
        },
        "evaluation": {"suites": [str(write_suite(folder / "suite.yaml", test))]},
    }
    for section, fields in changes.items():
        existing = {} if section == "adapter" else document.get(section, {})
        document[section] = existing | fields
    return Recipe.model_validate(document)
