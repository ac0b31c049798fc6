"""Optuna's study in a file: trials of all workers, which can be killed and gone on with."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.recipe.sweep import PrunerName, SamplerName
from lora_kit.runtime.errors import RecipeError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STORAGE, NAME = "sweep.journal", "sweep"
# Trials before the pruner compares: a median of fewer says little.
UNPRUNED_TRIALS = 4
# Attributes of a trial in the study.
DEFAULT, WORKER = "is_default", "worker"


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
    return HyperbandPruner() if name == "hyperband" else MedianPruner(UNPRUNED_TRIALS)


def enqueue_default(study: Study, parameters: Mapping[str, Any]) -> None:
    """Let the recipe as it is be a trial, once.

    Args:
        study: the study.
        parameters: values of the recipe for the fields that have theirs in the search space.
    """
    if not any(trial.user_attrs.get(DEFAULT) for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(dict(parameters), user_attrs={DEFAULT: True})


def worker_name() -> str:
    """Return a name of this process among the workers of all machines."""
    return f"{socket.gethostname()}/{os.getpid()}"


def requeue_abandoned(study: Study) -> int:
    """Let trials whose worker on this machine has ended be tried again, and return their number.

    A trial of another machine is left alone: whether it goes on is not seen from here.
    """
    from optuna.trial import TrialState

    abandoned = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if _is_abandoned(trial)
    ]
    for trial in abandoned:
        study.tell(trial.number, state=TrialState.FAIL)
        attributes = {n: v for n, v in trial.user_attrs.items() if n == DEFAULT}
        study.enqueue_trial(trial.params, user_attrs=attributes)
    return len(abandoned)


def _is_abandoned(trial: FrozenTrial) -> bool:
    host, _, process = str(trial.user_attrs.get(WORKER, "")).rpartition("/")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(process) == os.getpid()
