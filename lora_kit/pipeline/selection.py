"""Recipe and backbones -> ranked table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.adapter.attach import attach, coverage
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.files import BackboneFiles, resolve
from lora_kit.backbone.heads import HeadOutputs
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.dataset import open_rows, prepare, validation_rows
from lora_kit.data.head_targets import head_outputs
from lora_kit.data.prepared import PreparedData
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.suite import Suite, load_suites, without_judges
from lora_kit.evaluation.thoughts import Thinking
from lora_kit.preflight.checks import run_checks
from lora_kit.preflight.context import PreflightContext
from lora_kit.preflight.forecast import estimate_time, forecast
from lora_kit.recipe.objective import OF_SEVERAL_TEXTS
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.licence_sources import licensed_works
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import BackboneError, LoraKitError, RecipeError
from lora_kit.runtime.files import write_json
from lora_kit.runtime.launch import current_launch, require_unsharded_launch
from lora_kit.selection.measure import probe_scores, task_scores
from lora_kit.selection.record import BackboneResult, TaskScore, rank_backbones
from lora_kit.training.retention.texts import RetentionTexts

RECORD = "backbones.json"


def compare_backbones(
    recipe: Recipe, backbones: Sequence[str], output: Path | None = None, no_cache: bool = False
) -> tuple[BackboneResult, ...]:
    """Measure several backbones on a recipe's gain tasks before any training.

    Existing results are reused, after an interruption or with more backbones.

    Args:
        recipe: the tasks, training rows and adapter; its own backbone counts only if it is named.
        backbones: names as in `backbone.model`.
        output: directory of `backbones.json` and the journals; by default `runs/NAME-backbones`.
        no_cache: if true, ignore existing results.

    Returns:
        One result for each backbone, the best first; a backbone that fails has the reason in it.

    Raises:
        LoraKitError: if the recipe has no gain task, its data cannot be read, or every backbone
            fails.
    """
    require_unsharded_launch("compare-backbones")
    if not backbones or len(set(backbones)) < len(backbones):
        raise RecipeError(
            "--backbones: names no backbone, or one twice. Fix: name each once, separated by commas"
        )
    named = without_judges(load_suites(recipe.evaluation.suites), "backbones are not judged")
    suites = [one for one in named if one.role == "gain"]
    if not suites:
        raise RecipeError(
            "evaluation.suites: no suite has the role gain, on which backbones are compared. Fix: "
            "name one"
        )
    rows = open_rows(recipe.data, recipe.seed, recipe.training.objective)
    directory = output or Path("runs") / f"{recipe.name}-backbones"
    several = []
    for reference in backbones:
        say(f"{reference}:")
        place = directory / reference.replace("/", "--").replace(":", "--")
        several.append(_measure_backbone(_with(recipe, reference), suites, rows, place, no_cache))
    if all(one.refused for one in several):
        raise RecipeError("; ".join(f"{one.backbone}: {one.refused}" for one in several))
    found = rank_backbones(several)
    write_json(directory / RECORD, {"backbones": [one.to_dict() for one in found]})
    return found


def _with(recipe: Recipe, reference: str) -> Recipe:
    named: dict[str, str | None] = {"model": reference}
    if reference != recipe.backbone.model:
        # They belong to the recipe's own backbone.
        named |= {"revision": None, "license": None}
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update=named)})


def _measure_backbone(
    recipe: Recipe, suites: Sequence[Suite], rows: Rows, directory: Path, no_cache: bool
) -> BackboneResult:
    reference = recipe.backbone.model
    try:
        outputs, objective = head_outputs(rows, recipe), recipe.training.objective
        files = resolve(recipe.backbone)
        backbone, scores = _scored(recipe, files, outputs, suites, rows, directory, no_cache)
        data = prepare(rows, backbone.tokenizer, recipe.data, 0, objective, outputs)
        held_out_rows = validation_rows(recipe.data, recipe.seed, objective)
        held_out = prepare(held_out_rows, backbone.tokenizer, recipe.data, outputs=outputs)
        model = attach(backbone, recipe.adapter, recipe.seed)
        # A training that is refused is not timed; `plan` shows the warnings.
        run_checks(
            PreflightContext(
                recipe,
                current_launch(),
                backbone=backbone,
                model=model,
                examples=data.examples,
                held_out=held_out.examples,
                texts=RetentionTexts.read(recipe, backbone.tokenizer),
            )
        )
        covered = coverage(model)
        speed, memory = _speed_and_memory(recipe, backbone, model, data, held_out)
    except LoraKitError as error:
        return BackboneResult(reference, refused=str(error))
    return BackboneResult(
        reference,
        parameters=covered.total_parameters - covered.trainable_parameters,
        scores=scores,
        tokens_per_second=speed,
        memory=memory,
        license=licensed_works(recipe)[0].license,
    )


def _scored(
    recipe: Recipe,
    files: BackboneFiles,
    outputs: HeadOutputs | None,
    suites: Sequence[Suite],
    rows: Sequence[Row],
    directory: Path,
    no_cache: bool,
) -> tuple[Backbone, tuple[TaskScore, ...]]:
    """Return the backbone as it would be trained, and its scores.

    A backbone that is not a language model is scored by its features, if it can be a classifier.
    """
    objective = recipe.training.objective
    if objective in ("embedding", "mlm"):
        what = "an embedding" if objective == "embedding" else "a masked language model"
        raise BackboneError(
            "training.objective: backbones are compared by likelihoods of answers or a linear "
            f"probe, of which {what} has neither (got {objective}). Fix: `lora-kit run` the recipe "
            "with each of them; the arm base is the backbone itself"
        )
    # Preference pairs are no examples for a prompt.
    shown = () if recipe.training.objective in OF_SEVERAL_TEXTS else rows
    try:
        backbone = load(files, recipe.backbone)
    except BackboneError:
        if outputs is None:
            raise
        backbone = load(files, recipe.backbone, outputs)
        _require_classes(backbone, recipe)
        return backbone, probe_scores(backbone, plan_work(suites, backbone), rows)
    thinking = Thinking.of(recipe.evaluation)
    work = plan_work(suites, backbone, recipe.evaluation.shots, shown, thinking=thinking)
    scores = task_scores(backbone, work, shown, directory, no_cache)
    if outputs is not None:
        del backbone
        backbone = load(files, recipe.backbone, outputs)
    return backbone, scores


def _require_classes(backbone: Backbone, recipe: Recipe) -> None:
    """Refuse an encoder where other answers than classes are compared."""
    if backbone.head is not None and backbone.head.kind != "classification":
        raise BackboneError(
            f"backbone.model: an encoder gives answers no likelihood, so it cannot be compared for "
            f"training.objective {recipe.training.objective} (got {backbone.files.reference}). "
            "Fix: compare decoders"
        )


def _speed_and_memory(
    recipe: Recipe, backbone: Backbone, model: Any, data: PreparedData, held_out: PreparedData
) -> tuple[float | None, int | None]:
    """Return tokens per second of the recipe's training, and its memory in bytes."""
    if backbone.head or is_encoder_decoder(model):
        timed = estimate_time(recipe, backbone, model, data, held_out)
        return 1 / timed.probe.seconds_per_token, None
    taken = forecast(recipe, backbone, model, data, held_out)
    return 1 / taken.time.probe.seconds_per_token if taken.time else None, taken.memory.total
