"""Which run a training belongs to, and whether it may go on there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_kit.backbone.load import Backbone
from lora_kit.recipe.identity import training_fields
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import (
    RunDirectory,
    claim_run_directory,
    last_run_directory,
    new_run_directory,
)
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.processes import made_by_first
from lora_kit.training import checkpoints
from lora_kit.training.trainer import TrainingResult


@dataclass(frozen=True)
class Choice:
    """Which run a training belongs to.

    Attributes:
        run: that it goes on with; of a new one where it would be, for nothing is made yet.
        checkpoint: to go on from, if there is one.
        is_new: whether the run has yet to begin.
    """

    run: RunDirectory
    checkpoint: Path | None
    is_new: bool


def choose_run(recipe: Recipe, output: Path | None, overwrite: bool, resume: bool) -> Choice:
    """The run, and the checkpoint to go on from.

    Raises:
        RecipeError: if `output` holds an earlier run and neither is said.
    """

    def choose() -> Choice:
        run = last_run_directory(recipe, output) if resume else None
        if run is None:
            return Choice(new_run_directory(recipe, output, overwrite), None, is_new=True)
        return Choice(run, checkpoints.newest(run.checkpoints), is_new=False)

    # Each for itself would find the directory that the first one has made.
    return made_by_first(choose)


def begin_run(recipe: Recipe, output: Path | None, overwrite: bool) -> RunDirectory:
    """Make the directory of a new run.

    Raises:
        RecipeError: if `output` holds a run by now.
    """
    return made_by_first(lambda: claim_run_directory(recipe, output, overwrite))


def require_same(
    run: RunDirectory, recipe: Recipe, backbone: Backbone, inputs: Mapping[str, str]
) -> None:
    """Refuse to go on with another recipe, backbone or data than the run began with.

    Args:
        run: that was cut off.
        recipe: that it is to go on with.
        backbone: as it is now.
        inputs: digests of what else it goes by, as it is now, of what was read.

    Raises:
        RecipeError: naming what is different.
    """
    resolved = recipe.model_copy(update={"backbone": backbone.spec})
    before = training_fields(run.load_recipe().model_dump(mode="json"))
    now = training_fields(resolved.model_dump(mode="json"))
    changed = [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    record = run.load_record()
    files = "the backbone's files"
    now_is = {files: backbone.fingerprint.digest, **inputs}
    before_was = {files: record.get("backbone", {}).get("digest"), **record.get("inputs", {})}
    changed = changed or [
        name for name, value in now_is.items() if before_was.get(name) not in (None, value)
    ]
    if changed:
        raise RecipeError(
            f"{run.root}: cannot resume: the training changed ({'; '.join(changed)}). Fix: revert "
            "it, or drop --resume"
        )


def finished(run: RunDirectory) -> TrainingResult | None:
    """What a training that is done has recorded."""
    record = run.load_record()
    if "training" not in record or not run.adapter.is_dir():
        return None
    return TrainingResult(**record["training"])
