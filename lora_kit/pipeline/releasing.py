"""Merged model and verdict -> release, and the check of a release."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BACKBONE
from lora_kit.backbone.files import ALIASES
from lora_kit.evaluation.assembly import LEDGER, VERDICT
from lora_kit.evaluation.reporting.report import FLIPS, REPORTS
from lora_kit.evaluation.verdict_file import SUITES, check_verdict
from lora_kit.merging.exporting.modelfile import modelfile_of
from lora_kit.merging.methods import adapter_configuration, is_streamed
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.recipe.adapter import NOT_MERGED
from lora_kit.recipe.objective import HEADED, MERGED_HEADS
from lora_kit.recipe.outside import named_outside
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.card import model_card
from lora_kit.releasing.formats import check_formats
from lora_kit.releasing.gate import Clearance, clear_for_release
from lora_kit.releasing.licence_sources import licensed_works
from lora_kit.releasing.licences import licence_notes
from lora_kit.releasing.manifest import (
    ADAPTER,
    CARD,
    EVALUATION,
    MANIFEST,
    RECIPE,
    Manifest,
    build_manifest,
    files_below,
    read_manifest,
    write_manifest,
)
from lora_kit.releasing.push import check_destination, push
from lora_kit.releasing.release import Release
from lora_kit.releasing.verification import verify_release
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.session import Session
from lora_kit.runtime.errors import ReleaseError
from lora_kit.runtime.files import read_json, whole_directory, write_json, write_text
from lora_kit.runtime.temporaries import is_empty

ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BACKBONE)
EVALUATION_FILES = (LEDGER, SUITES, VERDICT, FLIPS, *REPORTS)


def release(
    target: Path | Session,
    output: Path | None = None,
    acceptance: Acceptance | None = None,
    repository: str | None = None,
    private: bool = False,
    files: Sequence[Path] = (),
) -> Release:
    """Release a run that passed: merged model, adapter, evaluation, card and manifest.

    Args:
        target: a run directory or an open session; the run has to be merged, and evaluated with the
            merged model as an arm.
        output: release directory; by default `release/` in the run.
        acceptance: accepts an INCONCLUSIVE verdict, with a reason for the card.
        repository: `OWNER/NAME` on the hub, to which the complete release is uploaded.
        private: if true, the hub repository is private.
        files: exported files to release beside the merged model, each with a verdict of its own.

    Raises:
        ReleaseError: if the run did not pass, with the reasons; if the model would not load; if the
            upload fails.
    """
    run = RunDirectory(target) if isinstance(target, Path) else target.run
    recipe = run.load_recipe()
    if why := why_not_released(run, recipe):
        raise ReleaseError(f"{run.root}: {why}", status=2)
    to = check_destination(repository, private) if repository else None
    _refuse_unusable(files)
    clearance = clear_for_release(run, acceptance, files)
    if output is not None:
        _refuse_occupied(output, clearance)
    warnings = (*_loading(clearance.merged, run.adapter), *_local_paths(recipe))
    manifest = build_manifest(run, clearance, licensed_works(recipe), warnings)
    directory = output or run.release
    _write(directory, run, clearance, manifest)
    names = [*files_below(directory), MANIFEST]
    return Release(
        directory=directory,
        decision=clearance.decision,
        acceptance=clearance.acceptance,
        files=len(names),
        bytes=sum((directory / name).stat().st_size for name in names),
        licences=licence_notes(manifest.works),
        warnings=warnings,
        commit=push(directory, to) if to else None,
    )


def _refuse_unusable(files: Sequence[Path]) -> None:
    """Refuse files that are not there, are no GGUF files, or have the same name."""
    for file in files:
        if not file.is_file() or file.suffix != ".gguf":
            raise ReleaseError(
                f"--file: not a GGUF file (got {file}). Fix: write it with `lora-kit export`",
                status=2,
            )
    names = [file.name for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReleaseError(
            f"--file: two files have the same name (got {twice[0]}). Fix: name each file once",
            status=2,
        )


def why_not_merged(run: RunDirectory, recipe: Recipe) -> str:
    """Return why a trained adapter cannot be merged; empty if it can."""
    if recipe.training.objective not in MERGED_HEADS or recipe.adapter.method in NOT_MERGED:
        return why_not_released(run, recipe)
    if is_streamed(adapter_configuration(run.adapter)):
        return ""
    return f"adapters of {recipe.adapter.method} are not merged into masked language models"


def why_not_released(run: RunDirectory, recipe: Recipe) -> str:
    """Return why a recipe's adapter cannot be released, and what ships instead; empty if it can."""
    method = recipe.adapter.method
    if recipe.training.objective == "embedding":
        what, shown = "an embedding", ", as recipes/guide/embeddings.md shows"
    elif recipe.training.objective in MERGED_HEADS and method not in NOT_MERGED:
        return (
            "a masked language model generates no text, with which a release is checked; ship "
            f"{run.merged_as(MERGED_ARMS[0])}, which transformers opens with AutoModelForMaskedLM"
        )
    elif recipe.training.objective in HEADED and recipe.training.objective not in MERGED_HEADS:
        what, shown = "a head", ", as recipes/guide/classification.md and reward.md show"
    elif method in NOT_MERGED:
        what, shown = f"an adapter of {method}", ""
    else:
        return ""
    return (
        f"{what} cannot be merged, so there is no model to release; ship {run.adapter} and load it "
        f"with PEFT on the backbone{shown}"
    )


def _refuse_occupied(output: Path, clearance: Clearance) -> None:
    """Refuse to replace anything but an earlier release of the same adapter."""
    if not output.exists() or is_empty(output):
        return
    is_release = (output / MANIFEST).is_file()
    if not is_release or read_manifest(output).adapter != clearance.recorded.lineage.adapter:
        raise ReleaseError(
            f"{output}: exists and is not empty. Fix: choose another --output", status=2
        )


def _loading(merged: Path, adapter: Path) -> tuple[str, ...]:
    """Return warnings about files that other programs cannot load.

    Raises:
        ReleaseError: if the model itself cannot be loaded.
    """
    found = check_formats(merged, adapter)
    if found.refusals:
        lines = "".join(f"\n  {reason}" for reason in found.refusals)
        raise ReleaseError(f"{merged}: cannot be loaded as the model that was measured{lines}")
    return found.warnings


def _write(directory: Path, run: RunDirectory, clearance: Clearance, manifest: Manifest) -> None:
    """Write the release, completely or not at all."""
    with whole_directory(directory) as temporary:
        for name in (*clearance.merge["files"], MERGE_RECORD):
            shutil.copy2(clearance.merged / name, temporary / name)
        for file in clearance.formats.values():
            shutil.copy2(file, temporary / file.name)
            modelfile = modelfile_of(file)
            if modelfile.is_file():
                shutil.copy2(modelfile, temporary / modelfile.name)
        _copy(run.adapter, temporary / ADAPTER, ADAPTER_FILES)
        _copy(run.evaluation, temporary / EVALUATION, EVALUATION_FILES)
        shutil.copy2(run.recipe, temporary / RECIPE)
        _name_base_for_others(temporary / ADAPTER)
        card = model_card(manifest, clearance.recorded.verdict, clearance.merge)
        write_text(temporary / CARD, card)
        write_manifest(temporary, manifest)
        # The check that everybody else has: a release has to pass it.
        verify_release(temporary, checked=clearance.evidence)


def _copy(source: Path, to: Path, names: Sequence[str]) -> None:
    """Copy known files; others in the directory were not meant to be released."""
    to.mkdir()
    for name in names:
        if (source / name).is_file():
            shutil.copy2(source / name, to / name)


def _local_paths(recipe: Recipe) -> Iterator[str]:
    """Warn of folders of this machine in the recipe, which a release makes public."""
    named = named_outside(recipe).items()
    fields = [name for name, value in named if Path(value).expanduser().is_absolute()]
    if fields:
        yield (
            f"recipe.yaml names folders of this machine, which nobody else has: {', '.join(fields)}"
        )


def _name_base_for_others(adapter: Path) -> None:
    """Replace an alias of the base, which PEFT does not know, with its hub id."""
    path = adapter / ADAPTER_CONFIG
    config = read_json(path, ReleaseError)
    alias = ALIASES.get(config.get("base_model_name_or_path", ""))
    if alias:
        write_json(path, config | {"base_model_name_or_path": alias.hub})


def verify(directory: Path) -> str:
    """Check a release against its manifest, or the verdict of a run or folder against its ledger.

    Returns:
        Summary of what was verified.

    Raises:
        LoraKitError: for the first thing that is wrong.
    """
    if (directory / MANIFEST).is_file():
        manifest = verify_release(directory)
        passed = f"its verdict is {manifest.decision}"
        if manifest.acceptance:
            passed += f", accepted: {manifest.acceptance.reason}"
        return (
            f"{len(manifest.files)} files are unchanged, and verdict and card follow from the "
            f"ledger; {passed}"
        )
    evaluation = directory
    if not (directory / VERDICT).is_file():
        run = RunDirectory(directory)
        run.load_recipe()
        evaluation = run.evaluation
    decision = check_verdict(evaluation).verdict.decision
    return f"the verdict, {decision}, follows from the ledger"
