"""Choice of the run directory, and the checks before a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_kit.backbone.load import Backbone
from lora_kit.backbone.varlen import VARLEN
from lora_kit.recipe.identity import training_fields
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import (
    RunDirectory,
    claim_run_directory,
    last_run_directory,
    new_run_directory,
)
from lora_kit.runs.record import resolve_recipe
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.machine import GpuPeak
from lora_kit.runtime.processes import broadcast_from_main
from lora_kit.training import checkpoints
from lora_kit.training.trainer import TrainingResult


@dataclass(frozen=True)
class RunChoice:
    """Run of a training, existing or new.

    Attributes:
        run: run to resume, or directory of the new run, which is not created yet.
        checkpoint: checkpoint to resume from, if there is one.
        is_new: true if the run does not exist yet.
    """

    run: RunDirectory
    checkpoint: Path | None
    is_new: bool


def choose_run(recipe: Recipe, output: Path | None, overwrite: bool, resume: bool) -> RunChoice:
    """Choose the run of a training and the checkpoint to resume from.

    Args:
        recipe: the recipe.
        output: run directory; `None` for `runs/NAME`.
        overwrite: if true, `output` may hold an earlier run.
        resume: if true, resume the run in `output`, or the newest of the recipe's name.

    Raises:
        RecipeError: if `output` holds an earlier run and neither flag is set.
    """

    def choose() -> RunChoice:
        run = last_run_directory(recipe, output) if resume else None
        if run is None:
            return RunChoice(new_run_directory(recipe, output, overwrite), None, is_new=True)
        return RunChoice(run, checkpoints.newest(run.checkpoints), is_new=False)

    # On their own, the other processes might find the directory that the first one created.
    return broadcast_from_main(choose)


def begin_run(recipe: Recipe, output: Path | None, overwrite: bool) -> RunDirectory:
    """Create the directory of a new run.

    Args:
        recipe: the recipe.
        output: run directory; `None` for `runs/NAME`.
        overwrite: if true, `output` may hold an earlier run.

    Raises:
        RecipeError: if `output` holds a run by now.
    """
    return broadcast_from_main(lambda: claim_run_directory(recipe, output, overwrite))


def require_same_training(
    run: RunDirectory, recipe: Recipe, backbone: Backbone, inputs: Mapping[str, str]
) -> None:
    """Refuse to resume a run with another recipe, backbone or data.

    Args:
        run: run to resume.
        recipe: current recipe.
        backbone: current backbone.
        inputs: digests of the other inputs as they are now, by description.

    Raises:
        RecipeError: naming the differences.
    """
    resolved = resolve_recipe(recipe, backbone)
    before = training_fields(run.load_recipe().model_dump(mode="json"))
    now = training_fields(resolved.model_dump(mode="json"))
    different = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    changes = {name: f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in different}
    by_machine = [
        changes.pop(name)
        for name, default in _defaults_of_gpus(recipe).items()
        if name in changes and default in (before.get(name), now.get(name))
    ]
    changed = list(changes.values())
    record = run.load_record()
    files = "the backbone's files"
    digests = {files: backbone.fingerprint.digest, **inputs}
    recorded = {files: record.get("backbone", {}).get("digest"), **record.get("inputs", {})}
    changed = changed or [
        name for name, value in digests.items() if recorded.get(name) not in (None, value)
    ]
    if changed:
        raise RecipeError(
            f"{run.root}: cannot resume: the training changed ({'; '.join(changed)}). Fix: revert "
            "it, or drop --resume"
        )
    if by_machine:
        say(f"{run.root}: begun on another kind of machine ({'; '.join(by_machine)})")


def _defaults_of_gpus(recipe: Recipe) -> dict[str, str]:
    """Return the fields that a recipe leaves open and some GPUs have another default for.

    They change nothing but the rounding.
    """
    defaults: dict[str, str] = {}
    if recipe.backbone.attention == "auto":
        defaults["backbone.attention"] = VARLEN
    if recipe.data.packing is None:
        defaults["data.packing"] = "unpadded"
    return defaults


def recorded_result(run: RunDirectory) -> TrainingResult | None:
    """Return the recorded result of a run; `None` if its training is not finished."""
    record = run.load_record()
    if "training" not in record or not run.adapter.is_dir():
        return None
    result = dict(record["training"])
    if gpu := result.get("peak_gpu_memory"):
        result["peak_gpu_memory"] = GpuPeak(**gpu)
    return TrainingResult(**result)
