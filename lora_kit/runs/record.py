"""The record of a run: recipe, versions, hardware, and hashes of model and data."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from lora_kit.backbone.load import Backbone
from lora_kit.recipe.identity import training_digest
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.files import write_text
from lora_kit.runtime.machine import checkout, machine, versions


def start_record(run: RunDirectory, recipe: Recipe, backbone: Backbone, command: str) -> None:
    """Write the resolved recipe, and start the record with versions, hardware and hashes."""
    resolved = recipe.model_copy(update={"backbone": backbone.spec})
    write_text(run.recipe, resolved.to_yaml())
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
