"""Optuna's study in a file: trials of all workers, which can be killed and gone on with."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from lora_kit.recipe.sweep import PARTS, PrunerName, SamplerName
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import write_text
from lora_kit.runtime.processes import is_running

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STORAGE, NAME = "sweep.journal", "sweep"
# Trials before the pruner compares: a median of fewer says little.
UNPRUNED_TRIALS = 4
# Part of a training at whose end it first prunes. After the first quarter, the high rate that won a
# sweep of the quickstart had the highest loss of all.
FIRST_PRUNED = 2
# Seconds between two signs of life of a worker, and those after which a silent one has ended.
BEAT, SILENCE = 15.0, 120.0
# Attributes of a trial in the study.
DEFAULT, WORKER, FOLDER, PRUNED, TRIES = "is_default", "worker", "folder", "pruned", "tries"
AGAIN = "again"
# Workers that a trial may end, before it is left. That of the recipe as it is is never left.
MOST_TRIES = 3
# File that names the process which proves the winner.
MAIN = "main"
# A process of the same host and number may be another one, after a restart of a container.
_TOKEN = secrets.token_hex(4)


def require_optuna() -> None:
    """Refuse a sweep without Optuna.

    Raises:
        RecipeError: if it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            "sweep: needs Optuna, which is not installed (got no module optuna). Fix: pip install "
            "'lora-kit[sweep]'"
        ) from error


def open_study(
    directory: Path, sampler: SamplerName, pruner: PrunerName, seed: int | None
) -> Study:
    """Open the study of a directory; a new one if there is none.

    Args:
        directory: directory of the sweep, which all workers share.
        sampler: sampler of values.
        pruner: pruner of trials by their validation loss.
        seed: seed of the sampler; `None` draws one, as further workers have to.

    Raises:
        RecipeError: if the file of an earlier process cannot be read.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / STORAGE
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            pruner=_pruner(pruner),
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
        )
    except ValueError as error:
        raise RecipeError(
            f"{path}: cannot be read (got {error}). Fix: restore it, or begin anew with another "
            "--output"
        ) from error
    # A sampler that begins anew with the seed would draw the values again that it has drawn.
    made = len(study.get_trials(deepcopy=False))
    study.sampler = _sampler(sampler, None if seed is None else seed + made)
    return study


def _sampler(name: SamplerName, seed: int | None) -> BaseSampler:
    from optuna.samplers import GPSampler, RandomSampler, TPESampler

    if name == "random":
        return RandomSampler(seed=seed)
    return GPSampler(seed=seed) if name == "gp" else TPESampler(seed=seed, n_startup_trials=5)


def _pruner(name: PrunerName) -> BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if name == "none":
        return NopPruner()
    if name == "hyperband":
        return HyperbandPruner(min_resource=FIRST_PRUNED, max_resource=PARTS - 1)
    return MedianPruner(UNPRUNED_TRIALS, n_warmup_steps=FIRST_PRUNED)


def enqueue_default(study: Study, directory: Path, parameters: Mapping[str, Any]) -> None:
    """Let the recipe as it is be a trial, once, also of workers that begin at the same time.

    Args:
        study: the study.
        directory: directory of the sweep.
        parameters: values of the recipe for the fields that have theirs in the search space.
    """
    with _locked(directory):
        if not any(trial.user_attrs.get(DEFAULT) for trial in study.get_trials(deepcopy=False)):
            study.enqueue_trial(dict(parameters), user_attrs={DEFAULT: True})


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other workers out of what reads the trials and writes what follows from them."""
    from optuna.storages.journal import JournalFileSymlinkLock

    # A link to what is there, or the lock of a killed worker would never be given up.
    beats = _beat_path(directory, MAIN).parent
    beats.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(beats))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def claim_proof(directory: Path) -> None:
    """Let this process be the one that proves the winner; its heart has to beat.

    Raises:
        RecipeError: if another one is that lives.
    """
    path = _beat_path(directory, MAIN)
    with _locked(directory):
        other = path.read_text(encoding="utf-8") if path.is_file() else ""
        if other and other != worker_name() and _beats(directory, other, _now(directory)):
            raise RecipeError(
                f"{directory}: another process works on this sweep and proves its winner (got "
                f"{other}). Fix: add --worker to help it, or name another directory with --output"
            )
        write_text(path, worker_name())


def worker_name() -> str:
    """Return a name of this process among the workers of all machines."""
    return f"{socket.gethostname()}-{os.getpid()}~{_TOKEN}"


@contextmanager
def heartbeat(directory: Path) -> Iterator[None]:
    """Let other workers see, while the context is open, that this one lives.

    Args:
        directory: directory of the sweep.
    """
    path, ended = _beat_path(directory, worker_name()), Event()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()

    def beat() -> None:
        while not ended.wait(BEAT):
            path.touch()

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def requeue_abandoned(study: Study, directory: Path) -> list[int]:
    """Let trials whose worker has ended be tried again, and return their numbers.

    Args:
        study: the study.
        directory: directory of the sweep.
    """
    from optuna.trial import TrialState

    with _locked(directory):
        now = _now(directory)
        abandoned = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if not _lives(directory, trial, now)
        ]
        return [trial.number for trial in abandoned if _try_again(study, trial, fails=True)]


def requeue_interrupted(study: Study, directory: Path, number: int) -> None:
    """Let a trial go on later that a signal has interrupted, which is no failure of its own.

    Args:
        study: the study.
        directory: directory of the sweep.
        number: number of the trial.
    """
    with _locked(directory):
        trial = study.get_trials(deepcopy=False)[number]
        if not trial.state.is_finished():
            _try_again(study, trial, fails=False)


def _try_again(study: Study, trial: FrozenTrial, fails: bool) -> bool:
    """End a trial and enqueue it again; return false if it has been tried often enough."""
    from optuna.trial import TrialState

    attributes = {n: v for n, v in trial.user_attrs.items() if n != WORKER}
    attributes[TRIES] = attributes.get(TRIES, 1) + fails
    attributes[AGAIN] = trial.number
    is_again = attributes[TRIES] <= MOST_TRIES or bool(attributes.get(DEFAULT))
    others = study.get_trials(deepcopy=False)
    # First the new trial: a worker that is killed in between leaves both, and here one is found.
    if is_again and not any(one.user_attrs.get(AGAIN) == trial.number for one in others):
        fixed = trial.system_attrs.get("fixed_params", {})
        study.enqueue_trial({**fixed, **trial.params}, user_attrs=attributes)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    return is_again


def _now(directory: Path) -> float:
    """Return the time on the disk that all share: clocks of machines differ."""
    return _beat_path(directory, worker_name()).stat().st_mtime


def _lives(directory: Path, trial: FrozenTrial, now: float) -> bool:
    worker = str(trial.user_attrs.get(WORKER, ""))
    if not worker:
        # It has just begun, or its worker was killed as it began.
        begun = trial.datetime_start
        return begun is not None and (datetime.now() - begun).total_seconds() < SILENCE
    return _beats(directory, worker, now)


def _beats(directory: Path, worker: str, now: float) -> bool:
    host, _, process = worker.partition("~")[0].rpartition("-")
    if host == socket.gethostname() and not is_running(int(process)):
        return False
    path = _beat_path(directory, worker)
    return path.is_file() and now - path.stat().st_mtime < SILENCE


def _beat_path(directory: Path, worker: str) -> Path:
    return directory / "workers" / worker
