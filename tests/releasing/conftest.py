"""A real run of the tiny model, from recipe to release, once for all tests of this folder."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lora_kit.pipeline import evaluate, merge, release, train
from lora_kit.recipe.recipe import Recipe
from tests.merging.in_process import in_this_process

GAIN = {
    "name": "sums",
    "role": "gain",
    "tasks": [{"name": "loss", "kind": "loss", "max_length": 128}],
}
RETENTION = {
    "name": "prose",
    "role": "retention",
    "tasks": [
        {
            "name": "reference",
            "kind": "loss",
            "source": "python-reference",
            "limit": 20,
            "max_length": 64,
            "margin": 20,
        }
    ],
}


def chat(number: int) -> str:
    question, answer = f"What is {number} plus {number}?", f"It is {2 * number}, I say."
    return json.dumps({"prompt": question, "completion": answer}) + "\n"


@pytest.fixture(scope="session")
@in_this_process()
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was trained, merged, evaluated with the arm `merged`, and passed."""
    place = tmp_path_factory.mktemp("releasing")
    (place / "chats.jsonl").write_text("".join(chat(n) for n in range(40)))
    (place / "held-out.jsonl").write_text("".join(chat(n) for n in range(100, 130)))
    GAIN["tasks"][0]["source"] = str(place / "held-out.jsonl")  # type: ignore[index]
    for suite in (GAIN, RETENTION):
        (place / f"{suite['name']}.yaml").write_text(yaml.safe_dump(suite))
    recipe = Recipe.model_validate(
        {
            "name": "sums",
            "backbone": {"model": str(tiny), "quantization": "none", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {
                "train": [{"source": str(place / "chats.jsonl"), "license": "CC-BY-4.0"}],
                "validation": [{"source": str(place / "held-out.jsonl"), "limit": 4}],
                "replay": {"source": "python-reference", "fraction": 0.1},
                "max_length": 128,
            },
            "training": {"batch_size": 4, "learning_rate": 1e-2, "epochs": 2},
            "evaluation": {"suites": [str(place / "sums.yaml"), str(place / "prose.yaml")]},
        }
    )
    session = train(recipe, place / "run").session
    merge(session)
    assert evaluate(session, arms=["merged"]).verdict.decision == "PASS"
    return place / "run"


@pytest.fixture(scope="session")
def released(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the release of the finished run."""
    return release(finished, tmp_path_factory.mktemp("released") / "release").directory


@pytest.fixture
def copied(released: Path, tmp_path: Path) -> Path:
    """Return a copy of the release to tamper with."""
    return Path(shutil.copytree(released, tmp_path / "copy"))


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the run to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
