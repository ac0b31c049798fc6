"""The arm `scratch` of heads: the same training on weights that were never pretrained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_kit import pipeline
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import open_run
from tests.entities import entities_recipe
from tests.scoring import numbers_recipe
from tests.tagging import labels_recipe


@pytest.mark.parametrize(
    ("which", "recipe_of"),
    [("tiny", numbers_recipe), ("tiny_encoder", labels_recipe), ("tiny_encoder", entities_recipe)],
)
def test_a_head_is_trained_on_random_weights_with_the_same_rows(
    which: str,
    recipe_of: Callable[[Path, Path], Recipe],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    # The tiny models are random themselves, with the seed 0.
    recipe = recipe_of(request.getfixturevalue(which), tmp_path).model_copy(update={"seed": 1})
    trained = pipeline.train(recipe, tmp_path / "run")
    answers = _answers(tmp_path / "run")
    (baseline,) = read_verdict(trained.run.evaluation).verdict.suites[0].tasks[0].baselines
    assert baseline.arm == "scratch"
    own, scratch = (
        load_file(run / "adapter" / "adapter_model.safetensors")
        for run in (tmp_path / "run", tmp_path / "run" / "scratch")
    )
    assert own.keys() == scratch.keys()
    assert not all(torch.equal(own[name], scratch[name]) for name in own)
    steps = (tmp_path / "run" / "scratch" / "metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, steps) if "loss" in entry]
    assert len(losses) == trained.result.steps
    # Read again from the disk, the arm gives the same answers.
    shutil.rmtree(trained.run.evaluation)
    assert _answers(tmp_path / "run") == answers


def _answers(run: Path) -> list[tuple[str, float | None]]:
    session = open_run(run)
    arms = ["base", "adapter", "scratch"]
    done = pipeline.evaluate(session, arms=arms, no_cache=True, stopping="none")
    ledger = read_ledger(done.directory / "ledger.parquet")
    return [(entry.output, entry.score) for entry in ledger if entry.arm == "scratch"]
