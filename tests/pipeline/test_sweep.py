"""`lora-kit sweep` end to end: trials on half A, the winner proved on half B, killed, resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lora_kit.adapter.saved import adapter_sha256
from lora_kit.evaluation.ledger import read_ledger
from lora_kit.pipeline import loaded_inputs, trials
from lora_kit.pipeline.sweep import SweepRequest, _facts, _is_spent
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sweep import SweepSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.selection.sweep.record import Trial, read_trials, write_trial
from tests.pipeline.learned_sums import command, write_recipe

ROOT = Path(__file__).parents[2]
RATES = "training.learning_rate=1e-4..2e-2:log"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of five trials, which loads the backbone once."""
    output, loaded, load = tmp_path_factory.mktemp("done") / "sweep", [], loaded_inputs.load
    options = ["--over", RATES, "--over", "adapter.rank=2,4", "--trials", "5"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loaded_inputs, "load", lambda *a: loaded.append(1) or load(*a))
        status = command("sweep", recipe, *options, "--output", output, "--pruner", "none")
    assert status == 0
    assert len(loaded) == 1
    return output


def found(output: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((output / "sweep.json").read_text())
    return value


def test_the_best_of_those_that_keep_is_proved_on_unseen_items(done: Path) -> None:
    result, made = found(done), read_trials(done)
    assert len(made) == 5
    assert made[0].is_default
    assert not made[0].values
    gains = {one.number: one.half_a.suites[0].tasks[0].interval.delta for one in made if one.half_a}
    best = max(gains, key=lambda n: gains[n])
    assert result["winner"]["number"] == best
    assert best != 0
    winner = Recipe.load(done / "winner.yaml")
    assert winner.sweep is None
    assert winner.training.learning_rate == float(made[best].values["training.learning_rate"])
    run = done / result["half_b"]["run"]
    asked = {
        half: {e.item for e in read_ledger(run / half / "ledger.parquet")}
        for half in ("half-a-first", "half-a", "half-b")
    }
    assert asked["half-a-first"] < asked["half-a"]
    assert not asked["half-a"] & asked["half-b"]
    # No other trial has been asked half B, but for the recipe as it is.
    others = {one.runs[0] for one in made} - {result["half_b"]["run"], made[0].runs[0]}
    assert not any((done / other / "half-b").exists() for other in others)
    [lead] = [one for one in result["half_b"]["against_default"] if one["role"] == "gain"]
    on_b = result["half_b"]["verdict"]["suites"][0]["tasks"][0]
    assert lead["winner"] == pytest.approx(on_b["adapter"])
    assert lead["interval"]["delta"] == pytest.approx(lead["default"] - lead["winner"])
    estimate = result["half_b"]["half_a_minus_half_b"]["aim/sums"]
    assert estimate == pytest.approx(gains[best] - on_b["interval"]["delta"])


def test_a_trial_is_what_its_recipe_trains_alone(done: Path, recipe: Path, tmp_path: Path) -> None:
    """The backbone that all trials share is as it was after each of them."""
    result = found(done)
    alone = train(Recipe.load(done / "winner.yaml"), tmp_path / "alone").run
    assert adapter_sha256(alone.adapter) == adapter_sha256(
        done / result["half_b"]["run"] / "adapter"
    )
    default = train(Recipe.load(recipe), tmp_path / "default").run
    assert adapter_sha256(default.adapter) == adapter_sha256(
        done / result["trials"][0]["runs"][0] / "adapter"
    )


def test_a_finished_sweep_is_not_made_again(
    done: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = shutil.copytree(done, tmp_path / "again")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(trials, "train", refuse)
    options = ["--over", RATES, "--over", "adapter.rank=2,4", "--trials", "5"]
    assert command("sweep", recipe, *options, "--pruner", "none", "--output", again) == 0
    assert found(again)["trials"] == found(done)["trials"]
    assert found(again)["half_b"]["verdict"] == found(done)["half_b"]["verdict"]


def test_another_sweep_is_not_gone_on_with(
    done: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("sweep", recipe, "--over", RATES, "--output", done) == 2
    assert "is of another sweep" in capsys.readouterr().err


def test_a_sweep_on_other_items_or_rows_is_not_gone_on_with(
    done: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copytree(done, tmp_path / "again")
    inputs = json.loads((again / "inputs.json").read_text())
    (again / "inputs.json").write_text(json.dumps({**inputs, "their items": "other"}))
    options = ["--over", RATES, "--over", "adapter.rank=2,4", "--trials", "6", "--pruner", "none"]
    assert command("sweep", recipe, *options, "--output", again) == 2
    assert "began with other inputs (got a change of their items)" in capsys.readouterr().err


def test_a_winner_after_a_proof_is_said_to_be_a_second_look(
    done: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after more trials: the winner of the first half of them has used half B already."""
    again = shutil.copytree(done, tmp_path / "again")
    record = found(again)
    assert record["proved_before"] == []
    first = next(one["number"] for one in record["trials"] if one != record["winner"])
    (again / "sweep.json").write_text(json.dumps(record | {"winner": {"number": first}}))
    options = ["--over", RATES, "--over", "adapter.rank=2,4", "--trials", "5"]
    arguments = ["sweep", recipe, *options, "--pruner", "none", "--output", again]
    for _ in range(2):
        assert command(*arguments) == 0
        assert found(again)["proved_before"] == [first]
        page = (again / "sweep.html").read_text()
        assert f"The sweep was continued after half B had judged trial {first}." in page
        assert "was seen by no trial" not in page
    assert "was seen by no trial" in (done / "sweep.html").read_text()


def test_what_is_no_sweep_is_left_as_it_is(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("mine")
    for output, said in ((notes, "is not empty, and no sweep"), (notes / "a.txt", "is a file")):
        assert command("sweep", recipe, "--over", RATES, "--output", output) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in notes.iterdir()] == ["a.txt"]
    # A recipe that cannot be swept leaves nothing that would be in the way of its correction.
    new = tmp_path / "new"
    only = ["--set", "evaluation.suites=[core-retention]"]
    assert command("sweep", recipe, "--over", RATES, *only, "--output", new) == 2
    assert not new.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["adapter.rank=8,16", "adapter.rank=32,64"], "adapter.rank has values twice (got 8,16"),
        (["adapter.target_modules=[q_proj],[v_proj]"], "not a list of single values"),
        (["adapter.rank=8,*x"], "not a list of single values"),
        (["training.objective=sft,text"], "training.objective is not searched"),
        (["data.validation.0.limit=4,8"], "data.validation.0.limit is not searched"),
        (["training.learning_rate=1e-4..1e-3", "budget=2"], "is no duration"),
        (["training.learning_rate=5e-3,1e-2", "sampler=gp"], "gp learns nothing"),
    ],
)
def test_bad_searches_are_refused(
    recipe: Path,
    tmp_path: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = []
    for one in options:
        name, _, value = one.partition("=")
        given += [f"--{name}", value] if name in ("budget", "sampler") else ["--over", one]
    assert command("sweep", recipe, *given, "--output", tmp_path / "new") == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "new").exists(), "the corrected sweep would be another one"


def test_a_run_is_no_sweep(done: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = done / read_trials(done)[0].runs[0]
    before = (run / "recipe.yaml").read_bytes()
    (run / "sweep.yaml").write_bytes(before)
    assert command("sweep", recipe, "--over", RATES, "--output", run) == 2
    assert "is of another sweep" in capsys.readouterr().err
    assert (run / "recipe.yaml").read_bytes() == before


def test_a_recipe_that_fails_is_a_refused_trial(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trials.train

    def fails(one: Recipe, *arguments: Any, **named: Any) -> Any:
        if one.adapter.rank == 2:
            raise TrainingError("step 1: the loss is not finite (got nan). Fix: lower the rate")
        return real(one, *arguments, **named)

    monkeypatch.setattr(trials, "train", fails)
    options = ["--over", "adapter.rank=2,8", "--trials", "4", "--sampler", "random"]
    command("sweep", recipe, *options, "--output", tmp_path / "sweep")
    made = read_trials(tmp_path / "sweep")
    refused = [one for one in made if one.values.get("adapter.rank") == "2"]
    assert refused
    assert {one.status for one in refused} == {"refused"}
    assert all("not finite" in one.reason for one in refused)
    # The only other value is made once: it is not trained again.
    trained = [one for one in made if one.runs]
    assert [one.values.get("adapter.rank") for one in trained] == [None, "8"]
    again = [one for one in made if one.status == "pruned" and not one.runs]
    assert all("its values are those of trial" in one.reason for one in again)
    assert len(refused) + len(again) == 2


@pytest.mark.slow
def test_a_trial_without_hope_is_given_up(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_kit.selection.sweep.study.UNPRUNED_TRIALS", 2)
    options = ["--over", "training.learning_rate=1e-5,1e-4,1e-3,5e-3", "--sampler", "random"]
    command("sweep", recipe, *options, "--trials", 6, "--output", tmp_path / "sweep")
    pruned = [one for one in read_trials(tmp_path / "sweep") if one.status == "pruned"]
    assert pruned
    by_loss = [one for one in pruned if "validation loss" in one.reason]
    assert by_loss
    assert all(not one.runs for one in by_loss)
    # Their unfinished adapters are gone.
    runs = {path.name for path in (tmp_path / "sweep" / "trials").iterdir()}
    kept = {Path(run).name for one in read_trials(tmp_path / "sweep") for run in one.runs}
    assert runs == kept


@pytest.mark.slow
def test_seeds_are_averaged_and_the_best_one_is_proved(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    options = ["--over", RATES, "--trials", "2", "--seeds", "2", "--pruner", "none"]
    command("sweep", recipe, *options, "--output", output)
    for trial in read_trials(output):
        assert len(trial.runs) == 2
        assert trial.half_a is not None
        single = [
            json.loads((output / run / "half-a" / "verdict.json").read_text())["suites"][0]
            for run in trial.runs
        ]
        gains = [one["tasks"][0]["interval"]["delta"] for one in single]
        mean = trial.half_a.suites[0].tasks[0].interval.delta
        assert mean == pytest.approx(sum(gains) / 2)
        assert trial.best_seed == gains.index(max(gains))
    winner = Recipe.load(output / "winner.yaml")
    chosen = found(output)["winner"]
    assert winner.seed == read_trials(output)[chosen["number"]].best_seed


def test_the_budget_ends_the_search(recipe: Path, tmp_path: Path) -> None:
    options = ["--over", RATES, "--trials", "50", "--budget", "1s", "--pruner", "none"]
    command("sweep", recipe, *options, "--output", tmp_path / "sweep")
    made = read_trials(tmp_path / "sweep")
    assert 1 <= len(made) < 20
    assert made[0].is_default


def test_trials_that_others_make_count_on_the_budget(tmp_path: Path) -> None:
    spec = SweepSpec.model_validate({"over": {"adapter.rank": "2,4"}, "budget": "100s"})
    assert not _is_spent(spec, tmp_path, [datetime.now()] * 9), "nothing has ended yet"
    write_trial(tmp_path, Trial(0, {}, True, "pruned", "made up", 30.0))
    now = datetime.now()
    assert not _is_spent(spec, tmp_path, [])
    assert not _is_spent(spec, tmp_path, [now])
    # 30 of one that has ended, 30 expected of each that has begun, and 30 of the next one.
    assert _is_spent(spec, tmp_path, [now, now])
    assert _is_spent(spec, tmp_path, [now - timedelta(seconds=50)])


def start(recipe: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "lora_kit", "sweep", recipe, "--output", output),
            *("--over", RATES, "--pruner", "none", *options),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("did not happen")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_workers_share_it(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    first = start(recipe, output, "--trials", "6")
    wait_for(lambda: len(list((output / "records").glob("*.json"))) >= 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before: list[Trial] = read_trials(output)
    both = [
        start(recipe, output, "--trials", "6"),
        start(recipe, output, "--trials", "6", "--worker"),
    ]
    assert [one.wait(timeout=300) for one in both] == [0, 0]
    made = read_trials(output)
    # Killed between its record and the end of its trial, the last one is judged again.
    assert made[: len(before) - 1] == before[:-1]
    assert before[-1].runs in [one.runs for one in made]
    assert len(made) == 6
    assert sum(one.is_default for one in made) == 1
    assert found(output)["half_b"]


def test_a_plan_tries_the_searched_values(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", recipe, "--set", "sweep={over: {adapter.rankk: [4, 8]}}") == 2
    assert "rankk: unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("over", "changes", "said"),
    [
        ("adapter.rank=2,4", [], ""),
        ("adapter.rank=2,4", ["data.validation=[]"], "without data.validation"),
        ("data.max_length=16,32", [], "not comparable between values of data.max_length"),
    ],
)
def test_a_pruner_without_losses_to_compare_is_said(
    recipe: Path, over: str, changes: list[str], said: str
) -> None:
    name, _, values = over.partition("=")
    request = SweepRequest(str(recipe), changes, {name: values})
    found = _facts(*request.spec())["Pruner"]
    assert (found == "median") == (not said)
    assert said in found
