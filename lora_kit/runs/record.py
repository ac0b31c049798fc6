"""The record of a run: recipe, versions, hardware, and hashes of model and data."""

from __future__ import annotations

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
    """Return the recipe with the defaults that depend on the machine, as they are on this one."""
    device = process_state().device.type
    packing = resolve_packing(recipe, backbone.spec.attention, device)
    data = recipe.data.model_copy(update={"packing": packing})
    return recipe.model_copy(update={"backbone": backbone.spec, "data": data})


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
