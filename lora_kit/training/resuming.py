"""Which run a training belongs to, and whether it may go on there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.backbone import Backbone
from lora_kit.errors import RecipeError
from lora_kit.processes import made_by_first
from lora_kit.recipe import Recipe
from lora_kit.run import (
    RunDirectory,
    claim_run_directory,
    last_run_directory,
    new_run_directory,
)
from lora_kit.training import checkpoints
from lora_kit.training.trainer import TrainingResult

# What training depends on.
PARTS = (
    *("seed", "backbone", "adapter", "data", "training", "retention"),
    *("classification", "preference", "reward", "grpo"),
)
# What may be another than before: it changes nothing of what is trained.
FREE = ("checkpoint_steps", "keep_checkpoints", "log_to")


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
    before = _flat(run.load_recipe().model_dump(mode="json"))
    now = _flat(recipe.model_copy(update={"backbone": backbone.spec}).model_dump(mode="json"))
    changed = [
        f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
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
            f"{run.root}: cannot go on: {'; '.join(changed)}. Start anew without --resume, or take "
            "back what was changed"
        )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """What training depends on, by dotted name."""
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for name, part in value.items():
        if path or name in PARTS:
            flat |= _flat(part, f"{path}.{name}" if path else name)
    return {n: v for n, v in flat.items() if n.removeprefix("training.") not in FREE}


def finished(run: RunDirectory) -> TrainingResult | None:
    """What a training that is done has recorded."""
    record = run.load_record()
    if "training" not in record or not run.adapter.is_dir():
        return None
    return TrainingResult(**record["training"])
