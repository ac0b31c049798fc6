"""Merged model and verdict to release, and a release checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_kit.adapter.attach import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.backbone.files import ALIASES
from lora_kit.evaluation.assembly import LEDGER, VERDICT
from lora_kit.evaluation.harness import SUITES, check_verdict, read_verdict
from lora_kit.evaluation.reporting.report import FLIPS, REPORTS
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.recipe.adapter import NOT_MERGED
from lora_kit.recipe.objective import HEADED
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.acceptance import Acceptance
from lora_kit.releasing.card import model_card
from lora_kit.releasing.checking import verify_release
from lora_kit.releasing.formats import check_formats
from lora_kit.releasing.gate import Clearance, clear
from lora_kit.releasing.licences import notes
from lora_kit.releasing.manifest import (
    ADAPTER,
    CARD,
    EVALUATION,
    MANIFEST,
    RECIPE,
    Manifest,
    collect,
    files_below,
    read_manifest,
    write_manifest,
)
from lora_kit.releasing.push import destination, push
from lora_kit.releasing.released import Release
from lora_kit.releasing.stated import works
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import ReleaseError
from lora_kit.runtime.files import read_json, whole_directory, write_json, write_text

ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "backbone.json")
EVALUATION_FILES = (LEDGER, SUITES, VERDICT, FLIPS, *REPORTS)


def release(
    run_directory: Path,
    output: Path | None = None,
    acceptance: Acceptance | None = None,
    repository: str | None = None,
    private: bool = False,
) -> Release:
    """Release a run that passed: merged model, adapter, evaluation, card and manifest.

    Args:
        run_directory: of a run that was merged, and evaluated with the merged model as an arm.
        output: the release directory; by default `release/` in the run.
        acceptance: lets an INCONCLUSIVE verdict through, and stands in the card.
        repository: `OWNER/NAME` on the hub, to which the release is sent once it is whole.
        private: whether nobody else may see that.

    Raises:
        ReleaseError: if the run did not pass, with the reasons; if it would not load; if it cannot
            be sent.
    """
    run = RunDirectory(run_directory)
    recipe = run.load_recipe()
    if why := why_not_released(run, recipe):
        raise ReleaseError(f"{run.root}: {why}", status=2)
    to = destination(repository, private) if repository else None
    clearance = clear(run, acceptance)
    if output is not None:
        _refuse_occupied(output, clearance)
    warnings = (*_loading(clearance.merged, run.adapter), *_local_paths(recipe))
    manifest = collect(run, clearance, works(recipe), warnings)
    directory = output or run.release
    _write(directory, run, clearance, manifest)
    names = [*files_below(directory), MANIFEST]
    return Release(
        directory,
        clearance.decision,
        clearance.acceptance,
        len(names),
        sum((directory / name).stat().st_size for name in names),
        notes(manifest.works),
        warnings,
        push(directory, to) if to else None,
    )


def why_not_released(run: RunDirectory, recipe: Recipe) -> str:
    """Why what a recipe trains is no release, and what ships in its place; empty where it is."""
    method = recipe.adapter.method
    if recipe.training.objective in HEADED:
        what, shown = "a head", ", as recipes/README.md shows"
    elif method in NOT_MERGED:
        what, shown = f"an adapter of {method}", ""
    else:
        return ""
    return (
        f"{what} is not merged, so there is no model to release; what ships is {run.adapter}: load "
        f"it with PEFT on the backbone{shown}"
    )


def _refuse_occupied(output: Path, clearance: Clearance) -> None:
    """Only an earlier release of the same adapter is written over, as after a push that failed."""
    if not output.exists() or not any(output.iterdir()):
        return
    is_release = (output / MANIFEST).is_file()
    if not is_release or read_manifest(output).adapter != clearance.verdict["adapter"]:
        raise ReleaseError(f"{output}: is there already and not empty", status=2)


def _loading(merged: Path, adapter: Path) -> tuple[str, ...]:
    """What does not load as it is.

    Raises:
        ReleaseError: if the model itself would not.
    """
    found = check_formats(merged, adapter)
    if found.refusals:
        lines = "".join(f"\n  {reason}" for reason in found.refusals)
        raise ReleaseError(f"{merged}: would not load as what was measured{lines}")
    return found.warnings


def _write(directory: Path, run: RunDirectory, clearance: Clearance, manifest: Manifest) -> None:
    """Write the release, whole or not at all."""
    with whole_directory(directory) as temporary:
        for name in (*clearance.merge["files"], MERGE_RECORD):
            shutil.copy2(clearance.merged / name, temporary / name)
        _copy(run.adapter, temporary / ADAPTER, ADAPTER_FILES)
        _copy(run.evaluation, temporary / EVALUATION, EVALUATION_FILES)
        shutil.copy2(run.recipe, temporary / RECIPE)
        _name_base_for_others(temporary / ADAPTER)
        card = model_card(manifest, clearance.verdict, clearance.merge)
        write_text(temporary / CARD, card)
        write_manifest(temporary, manifest)
        # By the same check that everybody else has: a release that fails it is none.
        verify_release(temporary)


def _copy(source: Path, to: Path, names: Sequence[str]) -> None:
    """Only what is known: whatever else lies there was not meant for others."""
    to.mkdir()
    for name in names:
        if (source / name).is_file():
            shutil.copy2(source / name, to / name)


def _local_paths(recipe: Recipe) -> Iterator[str]:
    """Say where the recipe names folders of this machine, which a release makes known."""
    data, kept = recipe.data, recipe.retention
    named = {
        "backbone.model": recipe.backbone.model,
        **{f"data.train.{n}.source": one.source for n, one in enumerate(data.train)},
        **{f"data.validation.{n}.source": one.source for n, one in enumerate(data.validation)},
        **({"data.replay.source": data.replay.source} if data.replay else {}),
        **{
            f"retention.{name}.source": spec.source
            for name in ("kl", "ewc", "early_stopping")
            if (spec := getattr(kept, name))
        },
        **{f"evaluation.suites.{n}": one for n, one in enumerate(recipe.evaluation.suites)},
    }
    fields = [name for name, value in named.items() if Path(value).expanduser().is_absolute()]
    if fields:
        yield (
            f"recipe.yaml names folders of the machine that it was made on, which nobody else has: "
            f"{', '.join(fields)}"
        )


def _name_base_for_others(adapter: Path) -> None:
    """Write the hub's id of the base where an alias of ours stands, which means nothing to PEFT."""
    path = adapter / ADAPTER_CONFIG
    config = read_json(path, ReleaseError)
    alias = ALIASES.get(config.get("base_model_name_or_path", ""))
    if alias:
        write_json(path, config | {"base_model_name_or_path": alias.hub})


def verify(directory: Path) -> str:
    """Check a release against its manifest, or a run's verdict against its ledger.

    Returns:
        What was found to be in order.

    Raises:
        LoraKitError: naming what is not.
    """
    if (directory / MANIFEST).is_file():
        manifest = verify_release(directory)
        passed = f"its verdict is {manifest.decision}"
        if manifest.acceptance:
            passed += f", accepted: {manifest.acceptance.reason}"
        return (
            f"{len(manifest.files)} files are what was released, and verdict and card follow from "
            f"the ledger; {passed}"
        )
    run = RunDirectory(directory)
    run.load_recipe()
    check_verdict(run.evaluation)
    decision = read_verdict(run.evaluation)["decision"]
    return f"the verdict, {decision}, follows from the ledger"
