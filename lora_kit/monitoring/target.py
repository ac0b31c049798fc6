"""Run or release whose adapter is monitored: recipe, ledger, and record of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.assembly import LEDGER
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.manifest import EVALUATION, MANIFEST, RECIPE, read_manifest
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import EvaluationError, ReleaseError
from lora_kit.runtime.hashes import file_sha256


@dataclass(frozen=True)
class MonitoredAdapter:
    """Adapter of a run or of a release.

    Attributes:
        root: directory of the run or the release.
        recipe: resolved recipe.
        evaluation: directory of ledger and suites.
        data: record of the training rows; empty if there is none.
    """

    root: Path
    recipe: Recipe
    evaluation: Path
    data: Mapping[str, Any]


def open_target(root: Path) -> MonitoredAdapter:
    """Open a run that was evaluated, or a release.

    Raises:
        LoraKitError: if it is neither, a run has no ledger, or a file of a release that is read
            differs from the manifest.
    """
    if (root / MANIFEST).is_file():
        return _release(root)
    run = RunDirectory(root)
    if not run.recipe.is_file():
        raise EvaluationError(
            f"{root}: neither a run (no recipe.yaml) nor a release (no {MANIFEST}). Fix: name a "
            "directory that `run` or `release` wrote"
        )
    if not (run.evaluation / LEDGER).is_file():
        raise EvaluationError(
            f"{root}: was not judged (got no {run.evaluation.name}/{LEDGER}). Fix: run `lora-kit "
            "evaluate` first"
        )
    return MonitoredAdapter(
        root, run.load_recipe(), run.evaluation, run.load_record().get("data") or {}
    )


def _release(root: Path) -> MonitoredAdapter:
    manifest = read_manifest(root)
    for name, digest in manifest.files.items():
        if name != RECIPE and not name.startswith(f"{EVALUATION}/"):
            continue
        if not (root / name).is_file() or file_sha256(root / name) != digest:
            raise ReleaseError(
                f"{root / name}: differs from {MANIFEST} (got another file or none). Fix: get an "
                "unmodified copy of the release"
            )
    return MonitoredAdapter(root, manifest.resolved_recipe, root / EVALUATION, manifest.data)
