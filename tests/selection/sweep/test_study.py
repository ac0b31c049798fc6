"""The study in a file: trials of workers that ended are tried again, others are left alone."""

import builtins
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from optuna import Study
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from lora_kit.runtime.errors import RecipeError
from lora_kit.selection.sweep import study as module
from lora_kit.selection.sweep.study import (
    DEFAULT,
    WORKER,
    claim_proof,
    enqueue_default,
    heartbeat,
    open_study,
    requeue_abandoned,
    requeue_interrupted,
    require_optuna,
    worker_name,
)


def test_the_recipe_as_it_is_is_enqueued_once(tmp_path: Path) -> None:
    for _ in range(2):
        study = open_study(tmp_path, "tpe", "median", 0)
        enqueue_default(study, tmp_path, {"adapter.rank": "8"})
    assert len(study.get_trials()) == 1
    trial = study.ask()
    assert trial.user_attrs == {DEFAULT: True}
    assert trial.suggest_categorical("adapter.rank", ["8", "16"]) == "8"


def test_workers_that_begin_at_the_same_time_enqueue_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = [open_study(tmp_path, "tpe", "none", None) for _ in range(2)]
    seen = Barrier(2)
    for study in studies:

        def get_trials(study: Study = study, **options: Any) -> Any:
            found = type(study).get_trials(study, **options)
            with suppress(BrokenBarrierError):
                # Both have looked before one of them writes, unless one has to wait.
                seen.wait(timeout=0.5)
            return found

        monkeypatch.setattr(study, "get_trials", get_trials)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda study: enqueue_default(study, tmp_path, {}), studies))
    assert len(open_study(tmp_path, "tpe", "none", None).trials) == 1


def test_trials_of_workers_that_ended_are_tried_again(tmp_path: Path) -> None:
    study = open_study(tmp_path, "random", "none", 0)
    host = worker_name().rpartition("-")[0]
    workers = [worker_name(), f"{host}-999999~0", "elsewhere-1~0", "elsewhere-2~0"]
    with heartbeat(tmp_path):
        for number, name in enumerate(workers):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            trial.set_user_attr(WORKER, name)
            assert trial.number == number
        silent, alive = (
            tmp_path / "workers" / "elsewhere-1~0",
            tmp_path / "workers" / "elsewhere-2~0",
        )
        silent.touch()
        alive.touch()
        old = silent.stat().st_mtime - module.SILENCE - 1
        os.utime(silent, (old, old))
        assert requeue_abandoned(study, tmp_path) == [1, 2]
        states = [trial.state for trial in study.get_trials()]
        assert states[:4] == [
            TrialState.RUNNING,
            TrialState.FAIL,
            TrialState.FAIL,
            TrialState.RUNNING,
        ]
        again = study.ask()
        assert again.suggest_float("x", 0, 1) == study.get_trials()[1].params["x"]
    assert not (tmp_path / "workers" / worker_name()).exists()


def test_an_interruption_costs_no_try(tmp_path: Path) -> None:
    study = open_study(tmp_path, "random", "none", 0)
    with heartbeat(tmp_path):
        for _ in range(3 * module.MOST_TRIES):
            trial = study.ask({"x": FloatDistribution(0, 1)})
            requeue_interrupted(study, tmp_path, trial.number)
        again = study.ask()
        assert again.suggest_float("x", 0, 1) == study.get_trials()[0].params["x"]
        assert again.user_attrs["tries"] == 1


@pytest.mark.parametrize(("is_default", "tries"), [(False, module.MOST_TRIES), (True, 9)])
def test_what_ends_its_workers_is_left_unless_it_is_the_recipe_as_it_is(
    tmp_path: Path, is_default: bool, tries: int
) -> None:
    study = open_study(tmp_path, "random", "none", 0)
    if is_default:
        enqueue_default(study, tmp_path, {"x": 0.25})
    dead = f"{socket.gethostname()}-999999~0"
    asked = 0
    with heartbeat(tmp_path):
        while asked < 9:
            trial = study.ask()
            trial.set_user_attr(WORKER, dead)
            asked += 1
            if not requeue_abandoned(study, tmp_path):
                break
        assert asked == tries
    if is_default:
        # It comes back with its value, although that was never suggested, and only once.
        assert study.ask().suggest_float("x", 0, 1) == 0.25
        enqueue_default(study, tmp_path, {})
    assert all(one.state != TrialState.WAITING for one in study.get_trials())


def test_workers_that_begin_at_the_same_time_try_a_trial_again_once(tmp_path: Path) -> None:
    first, second = (open_study(tmp_path, "random", "none", None) for _ in range(2))
    first.ask().set_user_attr(WORKER, f"{socket.gethostname()}-999999~0")
    with heartbeat(tmp_path), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: requeue_abandoned(one, tmp_path), (first, second)))
    assert sorted(found) == [[], [0]]
    states = [one.state for one in open_study(tmp_path, "random", "none", None).get_trials()]
    assert states == [TrialState.FAIL, TrialState.WAITING]


def test_a_worker_that_is_killed_while_it_tries_again_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(tmp_path, "random", "none", 0)
    study.ask().set_user_attr(WORKER, f"{socket.gethostname()}-999999~0")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with heartbeat(tmp_path):
        with monkeypatch.context() as patched:
            patched.setattr(study, "tell", killed)
            with pytest.raises(KeyboardInterrupt):
                requeue_abandoned(study, tmp_path)
        assert requeue_abandoned(study, tmp_path) == [0]
    assert [one.state for one in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_sweep_that_goes_on_draws_other_values(tmp_path: Path, sampler: Any) -> None:
    drawn = []
    for _ in range(3):
        study = open_study(tmp_path, sampler, "none", 0)
        trial = study.ask()
        drawn.append(trial.suggest_float("x", 0, 1))
        study.tell(trial, 1.0)
    assert len(set(drawn)) == 3


def test_one_process_proves_the_winner(tmp_path: Path) -> None:
    other = tmp_path / "workers" / "elsewhere-1~0"
    with heartbeat(tmp_path):
        claim_proof(tmp_path)
        claim_proof(tmp_path)
        (tmp_path / "workers" / "main").write_text(other.name)
        other.touch()
        with pytest.raises(RecipeError, match=r"another process .*elsewhere-1.*Fix: add --worker"):
            claim_proof(tmp_path)
        old = other.stat().st_mtime - module.SILENCE - 1
        os.utime(other, (old, old))
        claim_proof(tmp_path)


def test_a_cut_journal_is_named(tmp_path: Path) -> None:
    open_study(tmp_path, "random", "none", 0).ask()
    path = tmp_path / "sweep.journal"
    path.write_bytes(path.read_bytes() + b'{"op_code": 4, "work\n{"op')
    with pytest.raises(RecipeError, match=r"sweep\.journal: cannot be read .*another --output"):
        open_study(tmp_path, "random", "none", 0)


def test_a_trial_without_a_worker_has_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(tmp_path, "random", "none", 0)
    study.ask()

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=module.SILENCE + 1)

    with heartbeat(tmp_path):
        assert requeue_abandoned(study, tmp_path) == []
        monkeypatch.setattr(module, "datetime", Later)
        assert requeue_abandoned(study, tmp_path) == [0]


def test_without_optuna_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "optuna":
            raise ImportError
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RecipeError, match=r"pip install 'lora-kit\[sweep\]'"):
        require_optuna()
