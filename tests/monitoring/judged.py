"""Runs that were judged, made up on disk, and streams of texts that they meet."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.evaluation.ledger import Entry, write_ledger
from lora_kit.evaluation.suite import Suite
from lora_kit.recipe.recipe import Recipe

SUITE = Suite.model_validate(
    {"name": "help", "role": "gain", "tasks": [{"name": "loss", "kind": "loss", "source": "x"}]}
)
OWN = [
    "invoice",
    "refund",
    "order",
    "parcel",
    "address",
    "delivery",
    "account",
    "password",
    "receipt",
    "shop",
]
FOREIGN = [
    "tumour",
    "dosage",
    "patient",
    "fever",
    "insulin",
    "nurse",
    "clinic",
    "allergy",
    "vaccine",
    "surgeon",
]
COMMON = [
    "please",
    "help",
    "me",
    "with",
    "the",
    "this",
    "is",
    "my",
    "where",
    "was",
    "for",
    "not",
    "again",
    "today",
]


def sentences(count: int, seed: int, topic: Sequence[str] = OWN, words: int = 9) -> list[str]:
    """Return different sentences of common words and words of a topic."""
    draw = random.Random(f"{seed}/{topic[0]}")
    return [
        " ".join(draw.choice((*COMMON, *topic, *topic)) for _ in range(draw.randint(5, 2 * words)))
        for _ in range(count)
    ]


def write_judged_run(folder: Path, rows: int = 200, items: int = 60) -> Path:
    """Write a run: recipe, training rows, and the ledger of a gain suite."""
    root = folder / "run"
    (root / "evaluation").mkdir(parents=True)
    source = folder / "training.jsonl"
    pairs = [{"prompt": text, "completion": "Done."} for text in sentences(rows, 1)]
    source.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    recipe = Recipe.model_validate(
        {
            "name": "help",
            "backbone": {"model": "nowhere", "quantization": "none"},
            "data": {"train": [{"source": str(source)}]},
            "evaluation": {"suites": ["core-retention"]},
        }
    )
    (root / "recipe.yaml").write_text(recipe.to_yaml())
    (root / "run.json").write_text(json.dumps({"data": {"rows": rows, "replay_rows": 0}}))
    entries = [
        Entry(arm, "help", "loss", f"i{n}", f"i{n}", 1.0, "", text, "Done.", 3, 0.1)
        for n, text in enumerate(sentences(items, 2))
        for arm in ("base", "adapter")
    ]
    write_ledger(root / "evaluation" / "ledger.parquet", entries)
    suites = [SUITE.model_dump(mode="json")]
    (root / "evaluation" / "suites.json").write_text(json.dumps(suites))
    return root


def write_stream(path: Path, texts: Sequence[str], **fields: Any) -> Path:
    """Write rows of `{"prompt": ...}`; a field that is a function is called with the number."""
    rows = [
        {"prompt": text, **{k: v(n) if callable(v) else v for k, v in fields.items()}}
        for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed(windows: int, size: int, change: int, share: float = 0.3) -> list[str]:
    """Return a stream that has a share of foreign texts from a window on, counted from 1."""
    own = sentences(windows * size, 3)
    foreign = sentences(windows * size, 4, FOREIGN)
    every = round(1 / share)
    return [
        foreign[n] if n >= (change - 1) * size and n % every == 0 else text
        for n, text in enumerate(own)
    ]
