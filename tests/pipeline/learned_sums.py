"""Recipe that learns sums on a tiny model, with suites on other sums and on prose."""

import json
from pathlib import Path

import pytest
import yaml

from lora_kit.cli import main


def command(*arguments: object) -> int:
    """Run a command, and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def write_recipe(place: Path, tiny: Path) -> Path:
    """Write recipe, rows and suites, and return the recipe's path."""
    learned, held = _rows(place / "learned.jsonl", 100), _rows(place / "held.jsonl", 300)
    sums = {"name": "sums", "kind": "loss", "source": str(_rows(place / "asked.jsonl", 500))}
    prose = {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 30}
    suites = {
        "aim": {"role": "gain", "tasks": [{**sums, "max_length": 64}]},
        "keep": {"role": "retention", "tasks": [{**prose, "max_length": 16, "margin": 9}]},
    }
    for name, suite in suites.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **suite}))
    content = {
        "name": "tiny",
        "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {
            "train": [{"source": str(learned)}],
            "validation": [{"source": str(held), "limit": 8}],
            "max_length": 64,
        },
        "training": {"batch_size": 4, "learning_rate": 1e-3, "epochs": 1},
        "evaluation": {"suites": [str(place / f"{name}.yaml") for name in suites]},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(content))
    return place / "recipe.yaml"


def _rows(path: Path, first: int) -> Path:
    sums = [(n, n + 3) for n in range(first, first + 24)]
    rows = [{"prompt": f"{n} plus 3?", "completion": f"It is {total}."} for n, total in sums]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
