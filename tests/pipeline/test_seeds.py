"""`lora-kit run --seeds`: a verdict on the recipe, and the release of one adapter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_kit.evaluation.ledger import read_ledger
from lora_kit.pipeline import seeds as pipeline
from lora_kit.pipeline import training
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import ReleaseError
from tests.merging.in_process import in_this_process
from tests.pipeline.learned_sums import command, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny)


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run of two seeds, and its exit status."""
    output = tmp_path_factory.mktemp("done") / "seeds"
    with pytest.MonkeyPatch.context() as patched, in_this_process():
        patched.setenv("XDG_CACHE_HOME", str(output.parent / "cache"))
        status = command("run", recipe, "--seeds", 2, "--output", output)
    return output, status


def differences(run: Path, task: str) -> dict[str, float]:
    """Return the difference of adapter and base by item, on both halves."""
    found = {}
    for half in ("half-a", "half-b"):
        entries = [e for e in read_ledger(run / half / "ledger.parquet") if e.task == task]
        scores = {(e.arm, e.item): e.score for e in entries}
        for arm, item in scores:
            if arm == "adapter":
                base, own = scores["base", item], scores["adapter", item]
                assert base is not None
                assert own is not None
                found[item] = base - own  # a loss: lower is better
    return found


def test_the_recipe_is_judged_on_all_items_of_all_seeds(done: tuple[Path, int]) -> None:
    output, _ = done
    found = json.loads((output / "seeds.json").read_text())
    assert found["seeds"] == [0, 1]
    for task in found["tasks"]:
        by_seed = [differences(output / f"seed-{n}", task["task"]) for n in (0, 1)]
        assert by_seed[0].keys() == by_seed[1].keys()
        means = [np.mean(list(one.values())) for one in by_seed]
        assert means[0] != means[1]
        assert task["effect"]["by_seed"] == pytest.approx(means)
        interval = task["effect"]["interval"]
        assert interval["delta"] == pytest.approx(np.mean(means))
        assert interval["items"] == len(by_seed[0])
        assert interval["low"] < interval["delta"] < interval["high"]


def test_the_adapter_that_ships_is_proved_on_the_other_half(done: tuple[Path, int]) -> None:
    output, status = done
    found = json.loads((output / "seeds.json").read_text())
    gains = [
        json.loads((output / f"seed-{n}" / "half-a" / "verdict.json").read_text())["suites"][0][
            "tasks"
        ][0]["interval"]["delta"]
        for n in (0, 1)
    ]
    assert found["ships"] == gains.index(max(gains))
    run = output / f"seed-{found['ships']}"
    entries = read_ledger(run / "evaluation" / "ledger.parquet")
    assert {e.arm for e in entries} >= {"base", "adapter", "merged"}
    seen = {e.item for e in read_ledger(run / "half-a" / "ledger.parquet")}
    assert not seen & {e.item for e in entries}
    assert status == 0
    assert (run / "release" / "manifest.json").is_file()
    assert command("verify", run / "release") == 0


def test_finished_seeds_are_not_trained_again(
    done: tuple[Path, int], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, _ = done

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "run_training", refuse)
    monkeypatch.setattr(pipeline, "_shipped", lambda _, found, run: (found.ships, run.root))
    before = json.loads((output / "seeds.json").read_text())
    again = pipeline.run_seeds(Recipe.load(recipe), 2, output)
    assert again == (before["ships"], output / f"seed-{before['ships']}")
    assert json.loads((output / "seeds.json").read_text()) == before


def test_seeds_of_another_recipe_are_refused(
    done: tuple[Path, int], recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, _ = done
    options = ["--set", "training.learning_rate=2e-2", "--output", output]
    assert command("run", recipe, "--seeds", 2, *options) == 2
    assert "training.learning_rate" in capsys.readouterr().err


def test_what_follows_a_finished_training_is_as_the_recipe_says_now(
    done: tuple[Path, int], recipe: Path
) -> None:
    run = done[0] / "seed-0"
    before = (run / "recipe.yaml").read_text()
    changed = Recipe.load(recipe, ["merge.dtype=float32", "evaluation.looks=3"])
    trained = training.train(changed, run, resume=True)
    assert trained.session.recipe.merge.dtype == "float32"
    written = Recipe.load(run / "recipe.yaml")
    assert (written.merge.dtype, written.evaluation.looks) == ("float32", 3)
    trained.close()
    (run / "recipe.yaml").write_text(before)


def test_a_refused_release_is_the_exit_status(
    done: tuple[Path, int], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise ReleaseError("the merged model forgets", status=4)

    monkeypatch.setattr(pipeline, "release", refused)
    with in_this_process():
        outcome = pipeline.run_seeds(Recipe.load(recipe), 2, done[0])
    assert outcome.shipped.decision == "PASS"
    assert (outcome.status, outcome.refusal) == (4, "the merged model forgets")
