"""One input, the command that reads it, and the answer that the command has to give."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED = 2
# A task of few items, since recipes need a suite.
SUITE = {
    "name": "few sums",
    "role": "gain",
    "tasks": [{"name": "sums", "kind": "loss", "source": "sums", "limit": 4}],
}

# Row that any recipe accepts.
CHAT_ROW = {
    "messages": [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
    ]
}


@dataclass(frozen=True)
class Place:
    """Where a case writes its files.

    Attributes:
        folder: empty folder of the case.
        model: tiny random language model with a real tokenizer; to be copied before a change.
        adapter: LoRA adapter of `model`; to be copied before a change.
    """

    folder: Path
    model: Path
    adapter: Path


@dataclass(frozen=True)
class Case:
    """Input with the expected answer.

    Attributes:
        name: kind of the input, in words; unique.
        write: function that writes the input and returns the arguments of `lora-kit`.
        says: texts that the answer has to contain, on stdout or stderr.
        status: exit status.
    """

    name: str
    write: Callable[[Place], list[str]]
    says: tuple[str, ...]
    status: int = REFUSED


def plan_of(
    place: Place,
    data: Path | str,
    model: Path | None = None,
    source: Mapping[str, Any] | None = None,
    **sections: Any,
) -> list[str]:
    """Write a small recipe that reads `data`; return the arguments that plan it.

    Args:
        place: where the recipe is written.
        data: file or folder of the training rows.
        model: backbone, if another than the tiny model.
        source: further fields of the source.
        sections: further sections of the recipe; `data` is added to the section of that name.
    """
    suite = place.folder / "suite.yaml"
    suite.write_text(json.dumps(SUITE))  # JSON is YAML
    recipe = {
        "name": "case",
        "backbone": {"model": str(model or place.model), "quantization": "none"},
        "adapter": {"rank": 2, "alpha": 4},
        "training": {"batch_size": 2},
        "evaluation": {"suites": [str(suite)]},
        **sections,
        "data": {
            "train": [{"source": str(data), **(source or {})}],
            "max_length": 128,
            **sections.get("data", {}),
        },
    }
    path = place.folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return ["plan", str(path)]


def copied(folder: Path, target: Path) -> Path:
    """Copy a model's folder, its weights as hard links."""
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, target / file.name)
        else:
            shutil.copy(file, target / file.name)
    return target


def jsonl(place: Place, *rows: object, name: str = "rows.jsonl") -> Path:
    """Write rows as JSON Lines; a string is written as it is."""
    path = place.folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), errors="surrogatepass")
    return path


def plan_of_rows(name: str, rows: Sequence[object], *says: str, status: int = REFUSED) -> Case:
    """Return the case of a plan of JSON rows."""
    return Case(name, lambda place: plan_of(place, jsonl(place, *rows)), says, status)
