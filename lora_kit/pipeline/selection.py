"""Recipe and backbones to a ranked table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.adapter.attach import attach, coverage
from lora_kit.backbone.encoder_decoder import is_divided
from lora_kit.backbone.files import BackboneFiles, resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.dataset import open_rows, prepare, training_classes, validation_rows
from lora_kit.data.prepared import PreparedData
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.evaluation.engine.work import plan_work
from lora_kit.evaluation.suite import Suite, load_suites
from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.forecast import forecast, timing
from lora_kit.preflight.situation import Situation
from lora_kit.recipe.objective import PAIRED
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.stated import works
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import BackboneError, LoraKitError, RecipeError
from lora_kit.runtime.files import write_json
from lora_kit.runtime.launch import require_whole
from lora_kit.selection.measure import probe_scores, task_scores
from lora_kit.selection.record import BackboneResult, TaskScore, ranked

RECORD = "backbones.json"


def compare_backbones(
    recipe: Recipe, backbones: Sequence[str], output: Path | None = None, no_cache: bool = False
) -> tuple[BackboneResult, ...]:
    """Measure what several backbones do with a recipe's gain tasks before any training.

    What was measured before is not measured again: killed, or given more backbones, it goes on.

    Args:
        recipe: its tasks, training rows and adapter; its own backbone only if it is named.
        backbones: as in `backbone.model`.
        output: where `backbones.json` and the journals go; by default `runs/NAME-backbones`.
        fresh: measure everything again.

    Raises:
        LoraKitError: if the recipe has no gain task, its data cannot be read, or no backbone could
            be measured; one that cannot be is told in the result otherwise.
    """
    require_whole("compare-backbones")
    if not backbones or len(set(backbones)) < len(backbones):
        raise RecipeError("--backbones: name at least one, none twice, with commas between them")
    suites = [one for one in load_suites(recipe.evaluation.suites) if one.role == "gain"]
    if not suites:
        raise RecipeError(
            "evaluation.suites: backbones are compared on what is to be gained, and no suite has "
            "the role gain; name one"
        )
    rows = open_rows(recipe.data, recipe.seed, recipe.training.objective)
    directory = output or Path("runs") / f"{recipe.name}-backbones"
    several = []
    for reference in backbones:
        say(f"{reference}:")
        place = directory / reference.replace("/", "--").replace(":", "--")
        several.append(_scouted(_with(recipe, reference), suites, rows, place, no_cache))
    if all(one.refused for one in several):
        raise RecipeError("; ".join(f"{one.backbone}: {one.refused}" for one in several))
    found = ranked(several)
    write_json(directory / RECORD, {"backbones": [one.to_dict() for one in found]})
    return found


def _with(recipe: Recipe, reference: str) -> Recipe:
    named: dict[str, str | None] = {"model": reference}
    if reference != recipe.backbone.model:
        # These are of the recipe's own.
        named |= {"revision": None, "license": None}
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update=named)})


def _scouted(
    recipe: Recipe, suites: Sequence[Suite], rows: Rows, directory: Path, no_cache: bool
) -> BackboneResult:
    reference = recipe.backbone.model
    try:
        classes, objective = tuple(training_classes(rows, recipe)), recipe.training.objective
        files = resolve(recipe.backbone)
        backbone, scores = _scored(recipe, files, classes, suites, rows, directory, no_cache)
        data = prepare(rows, backbone.tokenizer, recipe.data, 0, objective, classes)
        held_out_rows = validation_rows(recipe.data, recipe.seed)
        held_out = prepare(held_out_rows, backbone.tokenizer, recipe.data, classes=classes)
        model = attach(backbone, recipe.adapter, recipe.seed)
        # What cannot be trained is not timed; what they warn of, `plan` says.
        run_checks(Situation(recipe, backbone=backbone, model=model, examples=data.examples))
        covered = coverage(model)
        speed, memory = _taken(recipe, backbone, model, data, held_out)
    except LoraKitError as error:
        return BackboneResult(reference, refused=str(error))
    return BackboneResult(
        reference,
        "",
        covered.total_parameters - covered.trainable_parameters,
        scores,
        speed,
        memory,
        works(recipe)[0].license,
    )


def _scored(
    recipe: Recipe,
    files: BackboneFiles,
    classes: Sequence[str],
    suites: Sequence[Suite],
    rows: Sequence[Row],
    directory: Path,
    no_cache: bool,
) -> tuple[Backbone, tuple[TaskScore, ...]]:
    """The backbone as it would be trained, and how it does: as a language model, where it is one.

    Of what is none, and can be a classifier, its features are asked.
    """
    # Pairs are not shown before a question.
    shown = () if recipe.training.objective in PAIRED else rows
    try:
        backbone = load(files, recipe.backbone)
    except BackboneError:
        if not classes:
            raise
        backbone = load(files, recipe.backbone, classes)
        _require_classes(backbone, recipe)
        return backbone, probe_scores(backbone, plan_work(suites, backbone), rows)
    work = plan_work(suites, backbone, recipe.evaluation.shots, shown)
    scores = task_scores(backbone, work, shown, directory, no_cache)
    if classes:
        del backbone
        backbone = load(files, recipe.backbone, classes)
    return backbone, scores


def _require_classes(backbone: Backbone, recipe: Recipe) -> None:
    """Raises BackboneError for what is no language model, and is asked for rewards."""
    if backbone.head is not None and backbone.head.is_reward:
        raise BackboneError(
            f"backbone.model: {backbone.files.reference}: an encoder cannot be scouted for pairs "
            f"(training.objective: {recipe.training.objective}): it gives answers no likelihood, "
            "and its features are asked about classes alone; scout decoders"
        )


def _taken(
    recipe: Recipe, backbone: Backbone, model: Any, data: PreparedData, held_out: PreparedData
) -> tuple[float | None, int | None]:
    """Tokens a second of the recipe's training and bytes that it takes."""
    if backbone.head or is_divided(model):
        timed = timing(recipe, backbone, model, data, held_out)
        return 1 / timed.probe.seconds_per_token, None
    taken = forecast(recipe, backbone, model, data, held_out)
    return 1 / taken.probe.seconds_per_token if taken.probe else None, taken.memory.total
