"""A tiny run, trained once."""

import json
import shutil
from pathlib import Path

import pytest

from lora_kit.pipeline import train
from lora_kit.recipe.recipe import Recipe
from tests.rescaling.small_run import GAIN, KEEP, suite


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A run that learned sums, its suites on sums and on prose, within whose margin it stays."""
    place = tmp_path_factory.mktemp("rescaled")
    learned, asked = place / "learned.jsonl", place / "asked.jsonl"
    for path, first in ((learned, 100), (asked, 500)):
        sums = [(n, n + 3) for n in range(first, first + 24)]
        rows = [{"prompt": f"{n} plus 3?", "completion": f"It is {total}."} for n, total in sums]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"train": [{"source": str(learned)}], "max_length": 64},
            "training": {"batch_size": 8, "learning_rate": 5e-3, "epochs": 1},
            "evaluation": {
                "suites": [suite(place, GAIN, ITEMS=asked), suite(place, KEEP, MARGIN=9)],
            },
        }
    )
    return train(recipe, place / "run").session.run.root


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what was trained, and a cache that knows nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(trained, tmp_path / "run")
