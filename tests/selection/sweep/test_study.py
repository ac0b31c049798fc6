"""The study in a file: trials of workers that ended are tried again, others are left alone."""

import builtins
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from optuna import Study
from optuna.trial import TrialState

from lora_kit.runtime.errors import RecipeError
from lora_kit.selection.sweep import study as module
from lora_kit.selection.sweep.study import (
    DEFAULT,
    WORKER,
    enqueue_default,
    heartbeat,
    open_study,
    requeue_abandoned,
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
    workers = [worker_name(), f"{host}-999999", "elsewhere-1", "elsewhere-2"]
    with heartbeat(tmp_path):
        for number, name in enumerate(workers):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            trial.set_user_attr(WORKER, name)
            assert trial.number == number
        silent, alive = tmp_path / "workers" / "elsewhere-1", tmp_path / "workers" / "elsewhere-2"
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
