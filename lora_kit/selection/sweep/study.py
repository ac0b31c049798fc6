"""Optuna's study in a file: trials of all workers, which can be killed and gone on with."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from lora_kit.recipe.sweep import PARTS, PrunerName, SamplerName
from lora_kit.runtime.errors import RecipeError
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
# Workers that a trial may end, before it is left.
MOST_TRIES = 3


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
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(directory / STORAGE))),
        sampler=_sampler(sampler, seed),
        pruner=_pruner(pruner),
        study_name=NAME,
        direction="maximize",
        load_if_exists=True,
    )


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
    from optuna.storages.journal import JournalFileSymlinkLock

    # A link to what is there, or the lock of a killed worker would never be given up.
    beats = _beat_path(directory, worker_name()).parent
    beats.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(beats))
    lock.acquire()
    try:
        if not any(trial.user_attrs.get(DEFAULT) for trial in study.get_trials(deepcopy=False)):
            study.enqueue_trial(dict(parameters), user_attrs={DEFAULT: True})
    finally:
        lock.release()


def worker_name() -> str:
    """Return a name of this process among the workers of all machines."""
    return f"{socket.gethostname()}-{os.getpid()}"


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

    # Of the disk that all share: clocks of machines differ.
    now = _beat_path(directory, worker_name()).stat().st_mtime
    abandoned = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not _lives(directory, trial, now)
    ]
    for trial in abandoned:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        attributes = {n: v for n, v in trial.user_attrs.items() if n != WORKER}
        attributes[TRIES] = attributes.get(TRIES, 1) + 1
        if attributes[TRIES] <= MOST_TRIES:
            study.enqueue_trial(trial.params, user_attrs=attributes)
    return [trial.number for trial in abandoned]


def _lives(directory: Path, trial: FrozenTrial, now: float) -> bool:
    worker = str(trial.user_attrs.get(WORKER, ""))
    if not worker:
        # It has just begun, or its worker was killed as it began.
        begun = trial.datetime_start
        return begun is not None and (datetime.now() - begun).total_seconds() < SILENCE
    host, _, process = worker.rpartition("-")
    if host == socket.gethostname() and not is_running(int(process)):
        return False
    path = _beat_path(directory, worker)
    return path.is_file() and now - path.stat().st_mtime < SILENCE


def _beat_path(directory: Path, worker: str) -> Path:
    return directory / "workers" / worker
