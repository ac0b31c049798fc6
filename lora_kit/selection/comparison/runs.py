"""Runs of directories: a run itself, the trials of a sweep, the seeds of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json
from lora_kit.selection.seeds import SEEDS
from lora_kit.selection.sweep.record import RECORDS, RUNS, SWEEP, read_trials

RUN_IS = (
    "a run is a directory that `train` or `run` wrote, with recipe.yaml; a sweep's directory "
    "(sweep.json) stands for its complete trials, one of several seeds (seeds.json) for its seeds"
)


@dataclass(frozen=True)
class NamedRun:
    """Run with the name that it has on the page.

    Attributes:
        name: name that no other run on the page has.
        directory: run directory.
        chosen: reason why this one was chosen on half A of the items, such as `winner of the
            sweep`; empty for a run that was not chosen by its results.
    """

    name: str
    directory: RunDirectory
    chosen: str


def find_runs(paths: Sequence[Path]) -> tuple[NamedRun, ...]:
    """Return the runs of directories, each once, in the order in which they are named.

    Args:
        paths: directories of runs, sweeps and seeds.

    Raises:
        EvaluationError: if a directory is none of these, or there are fewer than two runs.
    """
    names: dict[Path, tuple[str, ...]] = {}
    for path in paths:
        for run, candidates in _runs_of(path):
            names.setdefault(run, candidates)
    if len(names) < 2:
        raise EvaluationError(
            f"compare: needs at least two runs (got {len(names)}). Fix: name more directories; "
            f"{RUN_IS}"
        )
    return tuple(
        NamedRun(name, RunDirectory(run), _chosen(run))
        for run, name in zip(names, _shortest(list(names.values())), strict=True)
    )


def _runs_of(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the runs of a directory, each with its names from the shortest to the longest."""
    root = path.resolve()
    if (root / SWEEP).is_file():
        for trial in read_trials(root):
            for number, run in enumerate(trial.runs if trial.status == "complete" else ()):
                seed = f", adapter {number + 1}" if len(trial.runs) > 1 else ""
                name = trial.name + seed
                yield (root / run).resolve(), (name, *(f"{end}: {name}" for end in _ends(root)))
    elif (root / RECORDS).is_dir():
        raise EvaluationError(
            f"{path}: the sweep is not finished (got no {SWEEP}). Fix: repeat `lora-kit sweep` to "
            "continue it"
        )
    elif (root / SEEDS).is_file():
        seeds = read_json(root / SEEDS, EvaluationError).get("seeds")
        if not isinstance(seeds, list) or not seeds:
            raise EvaluationError(
                f"{root / SEEDS}: seeds: not a list of seeds (got {seeds!r}). Fix: repeat "
                "`lora-kit run --seeds` to write it again"
            )
        for seed in seeds:
            run_root = root / f"seed-{seed}"
            yield run_root, _ends(run_root)
    elif RunDirectory(root).recipe.is_file():
        yield root, _ends(root)
    else:
        raise EvaluationError(
            f"{path}: not a run (got no recipe.yaml, {SWEEP} or {SEEDS}). Fix: name a run; {RUN_IS}"
        )


def _ends(path: Path) -> tuple[str, ...]:
    """Return the ends of a path, from its name to the whole."""
    return tuple("/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1))


def _shortest(candidates: Sequence[Sequence[str]]) -> list[str]:
    """Return the first name of each run that no other has, longer where names collide."""
    levels = [0] * len(candidates)
    while True:
        names = [one[level] for one, level in zip(candidates, levels, strict=True)]
        counts = Counter(names)
        longer = [
            n
            for n, name in enumerate(names)
            if counts[name] > 1 and levels[n] + 1 < len(candidates[n])
        ]
        if not longer:
            return names
        for n in longer:
            levels[n] += 1


def _chosen(run: Path) -> str:
    sweep, seeds = run.parent.parent, run.parent
    if run.parent.name == RUNS and (sweep / SWEEP).is_file():
        proof = read_json(sweep / SWEEP, EvaluationError).get("half_b")
        proved = proof.get("run") if isinstance(proof, dict) else None
        if isinstance(proved, str) and (sweep / proved).resolve() == run:
            return "winner of the sweep"
    elif (seeds / SEEDS).is_file():
        ships = read_json(seeds / SEEDS, EvaluationError).get("ships")
        if run.name == f"seed-{ships}":
            return "seed that ships"
    return ""
