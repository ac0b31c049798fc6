"""Merged model and verdict to release, and a release checked."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_kit.errors import ReleaseError
from lora_kit.evaluation.harness import (
    check_verdict,
    read_verdict,
)
from lora_kit.files import whole_directory, write_text
from lora_kit.releasing.card import model_card
from lora_kit.releasing.gate import clear
from lora_kit.releasing.manifest import MANIFEST, verify_manifest, write_manifest
from lora_kit.run import RunDirectory, versions


def release(run_directory: Path, output: Path | None = None) -> Path:
    """Release a run that passed: merged model, adapter, evaluation, card and manifest.

    Args:
        run_directory: of a run that was evaluated and merged.
        output: the release directory; by default `release/` in the run.

    Returns:
        The release directory.

    Raises:
        ReleaseError: if the run did not pass, with the reasons.
    """
    run = RunDirectory(run_directory)
    recipe = run.load_recipe()
    clearance = clear(run)
    directory = output or run.release
    if output is not None and output.exists() and any(output.iterdir()):
        raise ReleaseError(f"{output}: is there already and not empty", status=2)
    with whole_directory(directory) as temporary:
        shutil.copytree(run.merged, temporary, dirs_exist_ok=True)
        for part in (run.adapter, run.evaluation):
            shutil.copytree(part, temporary / part.name)
        shutil.copy2(run.recipe, temporary / run.recipe.name)
        write_text(temporary / "README.md", model_card(recipe, clearance, run))
        write_manifest(
            temporary,
            {
                "name": recipe.name,
                "backbone": clearance.verdict["backbone"],
                "decision": clearance.verdict["decision"],
                "seed": recipe.seed,
                "versions": versions(),
            },
        )
    return directory


def verify(directory: Path) -> str:
    """Check a release against its manifest, or a run's verdict against its ledger.

    Returns:
        What was found to be in order.

    Raises:
        LoraKitError: naming what is not.
    """
    if (directory / MANIFEST).is_file():
        count = verify_manifest(directory)
        return f"{count} files are what was released, and the verdict follows from the ledger"
    run = RunDirectory(directory)
    run.load_recipe()
    check_verdict(run.evaluation)
    decision = read_verdict(run.evaluation)["decision"]
    return f"the verdict, {decision}, follows from the ledger"
