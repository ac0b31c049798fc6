"""The record of a run: recipe, versions, hardware, and hashes of model and data."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime

from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import resolve_packing
from lora_kit.recipe.identity import training_digest
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.files import write_text
from lora_kit.runtime.machine import checkout, machine, versions
from lora_kit.runtime.processes import process_state


def resolve_recipe(recipe: Recipe, backbone: Backbone) -> Recipe:
    """Return the recipe with what it leaves to the machine and the hub, as a backbone has it.

    Args:
        recipe: the recipe.
        backbone: a backbone; of a finished run, it may be another one than the recipe's.
    """
    device = process_state().device.type
    packing = resolve_packing(recipe, backbone.packing_attention, device)
    data = recipe.data.model_copy(update={"packing": packing})
    given, found = recipe.backbone, backbone.spec
    resolved = {
        "revision": given.revision if _is_commit(given.revision) else found.revision,
        "dtype": found.dtype if given.dtype == "auto" else given.dtype,
        "attention": found.attention if given.attention == "auto" else given.attention,
    }
    return recipe.model_copy(update={"backbone": given.model_copy(update=resolved), "data": data})


def _is_commit(revision: str | None) -> bool:
    """Return false for a branch or a tag, which the hub resolves."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def start_record(run: RunDirectory, recipe: Recipe, backbone: Backbone, command: str) -> None:
    """Write the resolved recipe, and start the record with versions, hardware and hashes."""
    write_text(run.recipe, resolve_recipe(recipe, backbone).to_yaml())
    run.update_record(
        command=command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=recipe.seed,
        backbone=asdict(backbone.fingerprint) | {"digest": backbone.fingerprint.digest},
        versions=versions(),
        machine=machine(),
        checkout=checkout(),
        recipe_sha256=training_digest(run.recipe),
    )
