"""Checkpoints: an interrupted and resumed training gives the same adapter, bit for bit."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_kit import pipeline
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import TrainingError, TrainingInterruptedError
from lora_kit.training import checkpoints
from tests.training.cut import STEPS, cut_off, during, losses, sha256, with_training

# Result of the uninterrupted training, shared by all tests: only the folder of the files differs.
WHOLE: list[tuple[str, list[float]]] = []


@pytest.fixture
def uninterrupted(recipe: Recipe, tmp_path: Path) -> tuple[str, list[float]]:
    if not WHOLE:
        pipeline.train(recipe, tmp_path / "whole")
        assert len(losses(tmp_path / "whole")) == STEPS
        assert not (tmp_path / "whole" / "checkpoints").exists()
        WHOLE.append((sha256(tmp_path / "whole"), losses(tmp_path / "whole")))
    return WHOLE[0]


@pytest.mark.parametrize("step", [3, 4, 7])
def test_going_on_from_any_step_gives_the_same_adapter(
    recipe: Recipe,
    uninterrupted: tuple[str, list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """Resume in the middle of an epoch, at its end, and before the last step."""
    cut_off(monkeypatch, recipe, tmp_path / "run", step)
    random.seed(99)  # another process would not be where this one is
    result = pipeline.train(recipe, tmp_path / "run", resume=True).result
    assert (sha256(tmp_path / "run"), losses(tmp_path / "run")) == uninterrupted
    assert result.steps == STEPS
    assert result.validation_before is not None


def test_a_damaged_checkpoint_is_passed_over(
    recipe: Recipe,
    uninterrupted: tuple[str, list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut_off(monkeypatch, recipe, tmp_path / "run", 5)
    folder = tmp_path / "run" / "checkpoints"
    with (folder / "step-000005" / checkpoints.OPTIMIZER).open("r+b") as stream:
        stream.truncate(1000)
    (folder / "step-000004" / checkpoints.FILES).unlink()
    assert checkpoints.newest(folder) == folder / "step-000003"
    pipeline.train(recipe, tmp_path / "run", resume=True)
    stderr = " ".join(capsys.readouterr().err.split())
    assert "step-000005: skipped damaged checkpoint: changed files: optimizer.safetensors" in stderr
    assert "resuming from step-000003" in stderr
    assert (sha256(tmp_path / "run"), losses(tmp_path / "run")) == uninterrupted


def test_a_full_disk_ends_with_an_error_and_leaves_the_last_checkpoint(
    recipe: Recipe,
    uninterrupted: tuple[str, list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    with monkeypatch.context() as patched:
        during(patched, 2, fill)
        try:
            with pytest.raises(TrainingError, match=r"cannot write.*step-000002 is complete"):
                pipeline.train(recipe, tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001", "step-000002"]
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert sha256(tmp_path / "run") == uninterrupted[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_and_asks_for_another_try(
    recipe: Recipe,
    uninterrupted: tuple[str, list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    handler = signal.getsignal(number)
    rare = with_training(recipe, save_steps=2)
    with monkeypatch.context() as patched:
        during(patched, 2, lambda: os.kill(os.getpid(), number))
        with pytest.raises(TrainingInterruptedError, match=f"{number.name} after step 3") as ended:
            pipeline.train(rare, tmp_path / "run")
    assert ended.value.status == 75
    assert signal.getsignal(number) == handler
    assert not (tmp_path / "run" / "adapter").exists()
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert (sha256(tmp_path / "run"), losses(tmp_path / "run")) == uninterrupted


def test_a_training_that_had_ended_does_not_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the last checkpoint, with 1.5 epochs or early stopping."""
    for name, changes in {
        "fraction": {"epochs": 1.5, "lr_scheduler": "constant"},
        "early_stopping_patience": {
            "epochs": 30.0,
            "learning_rate": 0.3,
            "eval_steps": 1,
            "early_stopping_patience": 2,
            "keep_best": True,
        },
    }.items():
        training = recipe.training.model_validate(recipe.training.model_dump() | changes)
        some = recipe.model_copy(update={"training": training})
        whole = pipeline.train(some, tmp_path / f"{name}-whole").result
        cut_off(monkeypatch, some, tmp_path / name, whole.steps)
        again = pipeline.train(some, tmp_path / name, resume=True).result
        assert (again.steps, again.kept_step) == (whole.steps, whole.kept_step)
        assert sha256(tmp_path / name) == sha256(tmp_path / f"{name}-whole")


@pytest.mark.parametrize("start", ["pissa", "eva"])
def test_factors_that_were_computed_go_on_as_they_were(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Half of the factors are frozen, or each layer has its own rank: both are restored."""
    options = {"options": {"init_lora_weights": start}}
    adapter = recipe.adapter.model_validate(recipe.adapter.model_dump() | options)
    some = recipe.model_copy(update={"adapter": adapter})
    pipeline.train(some, tmp_path / "whole")
    cut_off(monkeypatch, some, tmp_path / "run", 2)
    pipeline.train(some, tmp_path / "run", resume=True)
    assert sha256(tmp_path / "run") == sha256(tmp_path / "whole")


def test_other_batches_do_not_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, recipe, tmp_path / "run", 2)
    state = tmp_path / "run" / "checkpoints" / "step-000002" / checkpoints.STATE
    saved = json.loads(state.read_text())
    saved["length_group_size"] = 2
    state.write_text(json.dumps(saved))
    hashes = state.with_name(checkpoints.FILES)
    digests = json.loads(hashes.read_text())
    digests[state.name] = hashlib.sha256(state.read_bytes()).hexdigest()
    hashes.write_text(json.dumps(digests))
    with pytest.raises(
        TrainingError, match=r"got groups of 4 of similar length, 2 in the checkpoint"
    ):
        pipeline.train(recipe, tmp_path / "run", resume=True)


def test_only_the_latest_checkpoints_are_kept(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, with_training(recipe, save_total_limit=2), tmp_path / "run", 5)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000004", "step-000005"]
    names = {path.name for path in (tmp_path / "run" / "checkpoints" / kept[0]).iterdir()}
    assert not [name for name in names if not name.endswith((".safetensors", ".json"))]
    state = json.loads((tmp_path / "run" / "checkpoints" / kept[0] / checkpoints.STATE).read_text())
    # DeepSpeed deletes groups without parameters.
    assert all(group["params"] for group in state["optimizer"]["groups"])


def test_a_damaged_checkpoint_pushes_no_whole_one_out(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    cut_off(monkeypatch, with_training(recipe, save_total_limit=100), tmp_path / "run", 3)
    with (folder / "step-000002" / checkpoints.WEIGHTS).open("r+b") as stream:
        stream.truncate(100)
    kept_after_four: list[str] = []

    def look() -> None:
        kept_after_four.extend(sorted(path.name for path in folder.iterdir()))
        # A later step, as left over after resuming from an earlier one.
        shutil.copytree(folder / "step-000004", folder / "step-000099")
        (folder / "step-000099" / checkpoints.FILES).unlink()

    with monkeypatch.context() as patched:
        during(patched, 4, look)
        pipeline.train(with_training(recipe, save_total_limit=3), tmp_path / "run", resume=True)
    assert kept_after_four == ["step-000001", "step-000003", "step-000004"]
    stderr = " ".join(capsys.readouterr().err.split())
    assert "step-000002: removed damaged checkpoint: changed files: adapter.safetensors" in stderr
    assert "step-000099: removed damaged checkpoint" in stderr


@pytest.mark.slow
def test_two_processes_go_on_with_the_rows_that_were_left(recipe: Recipe, tmp_path: Path) -> None:
    """Killed in the middle of the second epoch, whose order accelerate does not restore."""
    (tmp_path / "tiny.yaml").write_text(recipe.to_yaml())
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "-m"]
    train = [*launcher, "lora_kit", "train", "tiny.yaml", "--resume", "--output"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*train, "whole"], cwd=tmp_path, env=environment, check=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(
        [*train, "run"], cwd=tmp_path, env=environment, start_new_session=True
    ) as process:
        while process.poll() is None:
            if metrics.is_file() and len(metrics.read_text().splitlines()) >= STEPS - 2:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.002)
    assert not (tmp_path / "run" / "adapter").exists()
    subprocess.run([*train, "run"], cwd=tmp_path, env=environment, check=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert sha256(tmp_path / "run") == sha256(tmp_path / "whole")


def test_killed_at_a_random_step_and_resumed_the_adapter_is_the_same(
    recipe: Recipe,
    uninterrupted: tuple[str, list[float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.yaml").write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "lora_kit", "train", "tiny.yaml", "--output", "run"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    metrics = tmp_path / "run" / "metrics.jsonl"
    killed = random.randint(2, STEPS - 2)
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None:
            if metrics.is_file() and len(metrics.read_text().splitlines()) >= killed:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        assert process.returncode == -signal.SIGKILL, f"not killed after {killed} steps"
    pipeline.train(recipe, tmp_path / "run", resume=True)
    assert "resuming from step-" in capsys.readouterr().err, killed
    assert (sha256(tmp_path / "run"), losses(tmp_path / "run")) == uninterrupted, killed
