"""Records of trials: one JSON file each, written when the trial has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lora_kit.evaluation.gain_choice import failed_retention
from lora_kit.evaluation.verdict import Verdict
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import finite, read_json, write_json

SWEEP, RECORDS, RUNS = "sweep.json", "records", "trials"
"""Record of a sweep in its directory, and the folders of its trials' records and runs."""
# `complete`: judged on half A. `pruned`: given up before. `refused`: a recipe that does not work.
TrialStatus = Literal["complete", "pruned", "refused"]


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        number: number of the trial, from 0.
        values: values of the searched fields as YAML; empty for the recipe as it is.
        is_default: true for the recipe as it is.
        status: end that the trial came to.
        reason: reason for a status other than `complete`.
        seconds: duration of training and evaluation.
        runs: run directory of each seed, relative to the sweep's; empty if none was trained.
        validation: validation loss at the end of each part of the first seed's training, in nats
            per token.
        half_a: verdict on half A, of the mean over the seeds; `None` unless complete.
        best_seed: index of the seed whose adapter gains most on half A of those that keep
            retention.
    """

    number: int
    values: Mapping[str, str]
    is_default: bool
    status: TrialStatus
    reason: str
    seconds: float
    runs: tuple[str, ...] = ()
    validation: Mapping[int, float] = field(default_factory=dict)
    half_a: Verdict | None = None
    best_seed: int = 0

    @property
    def name(self) -> str:
        """Name in tables: `default`, or the values."""
        if self.is_default:
            return "default"
        return ", ".join(f"{name.rpartition('.')[2]} {v}" for name, v in self.values.items())

    @property
    def keeps_retention(self) -> bool:
        """True if all retention tasks are shown to be within their margins on half A."""
        return self.half_a is not None and not failed_retention(self.half_a)


def record_path(directory: Path, number: int) -> Path:
    """Return the path of a trial's record in the directory of the sweep."""
    return directory / RECORDS / f"{number:04}.json"


def write_trial(directory: Path, trial: Trial) -> None:
    """Write the record of a trial.

    Args:
        directory: directory of the sweep.
        trial: the trial.
    """
    values = asdict(trial)
    values["half_a"] = None if trial.half_a is None else trial.half_a.to_dict()
    path = record_path(directory, trial.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, finite(values))


def read_trials(directory: Path) -> list[Trial]:
    """Return all trials that have ended, by their numbers.

    Raises:
        RecipeError: if a record is not one of this version.
    """
    return [_read(path) for path in sorted((directory / RECORDS).glob("*.json"))]


def _read(path: Path) -> Trial:
    values: dict[str, Any] = read_json(path, RecipeError)
    try:
        if values.get("half_a") is not None:
            values["half_a"] = Verdict.from_dict(values["half_a"])
        return TypeAdapter(Trial).validate_python(values)
    except ValidationError as error:
        raise RecipeError(
            f"{path}: not a record of a trial (got {error.errors()[0]['msg']}). Fix: restore "
            "it, or begin anew with another --output"
        ) from error
