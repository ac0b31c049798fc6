"""Layout of the run directory, and the choice of a new one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.recipe.document import read_document
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import read_json, write_json
from lora_kit.runtime.temporaries import is_empty

HALF_A, HALF_B, HALF_A_FIRST = "half-a", "half-b", "half-a-first"
"""Directories of a run's results on one half of the items: where adapters of several seeds or of a
sweep are compared, where the chosen one is proved, and on few items of half A."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of everything that a recipe produces.

    Attributes:
        root: the run directory.
    """

    root: Path

    @property
    def recipe(self) -> Path:
        """Resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def record(self) -> Path:
        """Record of versions, hardware, hashes, counts and durations."""
        return self.root / "run.json"

    @property
    def adapter(self) -> Path:
        """PEFT adapter."""
        return self.root / "adapter"

    @property
    def metrics(self) -> Path:
        """Training metrics, one JSON object a step."""
        return self.root / "metrics.jsonl"

    @property
    def self_distillation(self) -> Path:
        """Rows, answers, classes and weights that the base gave before training."""
        return self.root / "generated_rows.json"

    @property
    def label_errors(self) -> Path:
        """Rows whose label looked wrong before training."""
        return self.root / "label_errors.json"

    @property
    def to_label(self) -> Path:
        """Texts that `select` chose to be labelled."""
        return self.root / "to_label.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints; deleted when the training has finished."""
        return self.root / "checkpoints"

    @property
    def training_plot(self) -> Path:
        """Plot of loss, learning rate and gradient norm."""
        return self.root / "training.png"

    @property
    def evaluation(self) -> Path:
        """Ledger, verdict and report."""
        return self.root / "evaluation"

    @property
    def scaled(self) -> Path:
        """PEFT adapter at the scale that `rescale` chose."""
        return self.root / "adapter-rescaled"

    @property
    def rescale(self) -> Path:
        """Evaluations of `rescale`, one for each half."""
        return self.root / "rescale"

    @property
    def rescale_record(self) -> Path:
        """Record of `rescale`: scales, estimates, choice and proof."""
        return self.root / "rescale.json"

    @property
    def rescale_plot(self) -> Path:
        """Plot of gain against forgetting over the scales."""
        return self.root / "rescale.png"

    @property
    def merged(self) -> Path:
        """Merged model and `merge.json`."""
        return self.merged_as("merged")

    def merged_as(self, arm: str) -> Path:
        """Return the directory of the merged model that is the arm of this name."""
        return self.root / arm

    @property
    def scratch(self) -> Path:
        """Run of the same recipe on randomly initialised weights."""
        return self.root / "scratch"

    @property
    def plain(self) -> Path:
        """Run of the same recipe without added or weighed rows."""
        return self.root / "plain"

    @property
    def release(self) -> Path:
        """Release."""
        return self.root / "release"

    @property
    def results(self) -> tuple[Path, ...]:
        """All directories of results."""
        return (
            self.checkpoints,
            self.adapter,
            self.evaluation,
            self.scaled,
            self.rescale,
            *(self.merged_as(arm) for arm in MERGED_ARMS),
            self.scratch,
            self.plain,
            self.release,
            *(self.root / half for half in (HALF_A, HALF_B, HALF_A_FIRST)),
            self.root / "tensorboard",
        )

    def load_recipe(self) -> Recipe:
        """Load the recipe of the run.

        Raises:
            RecipeError: if this is not a run directory.
        """
        if not self.recipe.is_file():
            raise RecipeError(f"{self.root}: not a run directory, since it has no recipe.yaml")
        return Recipe.load(self.recipe)

    def load_record(self) -> dict[str, Any]:
        """Load `run.json`; an empty record if it does not exist yet.

        Raises:
            RecipeError: if it is not a JSON object.
        """
        return read_json(self.record, RecipeError) if self.record.is_file() else {}

    def update_record(self, **entries: Any) -> None:
        """Add entries to `run.json`."""
        write_json(self.record, self.load_record() | entries)


def last_run_directory(recipe: Recipe, output: Path | None) -> RunDirectory | None:
    """Return the run in `output`, or the newest run of the recipe's name; `None` without one."""
    if output is not None:
        run = RunDirectory(output)
        return run if run.recipe.is_file() else None
    numbered = {
        number: RunDirectory(path)
        for path in Path("runs").glob(f"{recipe.name}*")
        if (number := _number(path.name, recipe.name))
    }
    # The recipe `a` has its second run in `a-2`, and so has the recipe `a-2` its first.
    own = [number for number, run in numbered.items() if _is_run_of(run, recipe.name)]
    return numbered[max(own)] if own else None


def _number(directory: str, name: str) -> int:
    """Return 1 for `NAME`, N for `NAME-N`, and 0 for any other directory."""
    rest = directory.removeprefix(name)
    return 1 if not rest else int(rest[1:]) if rest[0] == "-" and rest[1:].isdigit() else 0


def _is_run_of(run: RunDirectory, name: str) -> bool:
    try:
        return bool(read_document(run.recipe).value.get("name") == name)
    except RecipeError:
        return False


def new_run_directory(recipe: Recipe, output: Path | None, overwrite: bool = False) -> RunDirectory:
    """Choose the directory of a new run; an earlier run is replaced only with `overwrite`.

    Args:
        recipe: the recipe, whose name the run gets.
        output: the directory, or `None` for `runs/NAME`, `runs/NAME-2` and so on.
        overwrite: if true, `output` may hold an earlier run.

    Raises:
        RecipeError: if `output` exists.
    """
    if output is None:
        return RunDirectory(next(path for path in _names(recipe) if not path.exists()))
    run = RunDirectory(output)
    if output.exists() and not output.is_dir():
        raise RecipeError(f"{output}: is a file. Fix: name a directory with --output")
    if not output.exists() or is_empty(output):
        return run
    if not overwrite:
        raise RecipeError(
            f"{output}: exists and is not empty. Fix: choose another --output, or add --overwrite"
        )
    if not run.recipe.is_file():
        raise RecipeError(
            f"{output}: not a run (no recipe.yaml), so --overwrite does not replace it. Fix: "
            "choose another --output"
        )
    return run


def claim_run_directory(
    recipe: Recipe, output: Path | None, overwrite: bool = False
) -> RunDirectory:
    """Create the directory of a new run, exclusively.

    Runs that start at the same time find the same name free; one of them creates it, and the others
    take the next name. Call this after all checks, so that no refusal leaves an empty directory.

    Args:
        recipe: as in `new_run_directory`.
        output: as in `new_run_directory`.
        overwrite: as in `new_run_directory`.

    Raises:
        RecipeError: if `output` exists, or another run has just created it.
    """
    if output is None:
        return RunDirectory(next(path for path in _names(recipe) if _create(path)))
    was_there = output.exists()
    run = new_run_directory(recipe, output, overwrite)
    if not _create(output) and not was_there:
        raise RecipeError(
            f"{output}: another run has just started there. Fix: choose another --output"
        )
    return run


def _names(recipe: Recipe) -> Iterator[Path]:
    """Yield `runs/NAME`, `runs/NAME-2` and so on."""
    yield Path("runs") / recipe.name
    for number in itertools.count(2):
        yield Path("runs") / f"{recipe.name}-{number}"


def _create(path: Path) -> bool:
    """Create a directory; return whether it did not exist before."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
