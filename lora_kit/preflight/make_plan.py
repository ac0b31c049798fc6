"""Making of a plan: all checks and estimates that need no training, from local files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lora_kit.adapter.attach import Coverage, coverage
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import resolve_packing
from lora_kit.data.dataset import mix_replay, open_rows, validation_rows
from lora_kit.data.head_targets import head_outputs
from lora_kit.data.row_sets import Rows
from lora_kit.data.training_rows import TrainingRows
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.stopping import Stopping
from lora_kit.evaluation.suite import load_suites
from lora_kit.evaluation.thoughts import Thinking
from lora_kit.preflight.advice import Advice, advise, runs_on_the_same_rows, situation_of
from lora_kit.preflight.forecast import (
    Forecast,
    TimeEstimate,
    as_on_gpu,
    estimate_merged,
    estimate_per_process,
    estimate_time,
    forecast,
)
from lora_kit.preflight.gpu_time import training_seconds
from lora_kit.preflight.gpus import fitting_gpus
from lora_kit.preflight.guidance import recipe_hints
from lora_kit.preflight.launch_file import LaunchFile, refuse_impossible_launch
from lora_kit.preflight.memory import MemoryEstimate
from lora_kit.preflight.merged_memory import MergedMemory
from lora_kit.preflight.plan import BackbonePlan, Plan
from lora_kit.preflight.plan_backbone import open_for_plan
from lora_kit.preflight.prepare import PreparedTraining, prepare_training
from lora_kit.preflight.samples import label_samples
from lora_kit.preflight.speed_hints import speed_hints
from lora_kit.preflight.suite_power import compute_suite_power
from lora_kit.preflight.thoughts import taught_thoughts
from lora_kit.recipe.adapter import NOT_MERGED
from lora_kit.recipe.data import SELF
from lora_kit.recipe.objective import NEW_HEADS
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import MissingBackboneError
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.processes import process_state
from lora_kit.training.head_rows.read import changes_rows
from lora_kit.training.self_distillation.rows import read_training_rows
from lora_kit.training.step_sizes import micro_batch_size, optimizer_steps


def make_plan(recipe: Recipe, launch_file: LaunchFile | None = None) -> Plan:
    """Check a recipe on this machine and plan its run.

    Problems found by the data audit are part of the plan and are not refused.

    Args:
        recipe: recipe to plan.
        launch_file: launch file of the planned run, on this or other machines; by default the
            launch of this process.

    Raises:
        LoraKitError: from the first stage that refuses.
    """
    if launch_file:
        refuse_impossible_launch(launch_file, recipe)
    has_changed_rows = changes_rows(recipe)  # refuses what cannot be done
    suites = load_suites(recipe.evaluation.suites)
    spec = recipe.training
    sources = open_rows(recipe.data, recipe.seed, spec.objective)
    read = TrainingRows(*mix_replay(sources, recipe.data, recipe.seed))
    launch = launch_file.launch if launch_file else current_launch()
    device = launch_file.device if launch_file else process_state().device
    plan = Plan(
        recipe=recipe,
        rows=len(read.rows),
        replay_rows=read.replay,
        validation_rows=len(validation_rows(recipe.data, recipe.seed, spec.objective)),
        formats=read.rows.formats(),
        optimizer_steps=optimizer_steps(len(read.rows), spec),
        micro_batch_size=micro_batch_size(spec, launch.processes, device),
        suites=compute_suite_power(
            suites, spec.objective in NEW_HEADS, Stopping.of(recipe.evaluation)
        ),
        launch_file=launch_file,
    )
    try:
        files = resolve(recipe.backbone, allow_network=False)
    except MissingBackboneError as error:
        return replace(plan, missing_backbone=str(error))
    outputs = head_outputs(sources, recipe)
    backbone, without_weights = open_for_plan(
        files, recipe.backbone, outputs, is_elsewhere=launch_file is not None
    )
    is_self_replay = recipe.data.replay is not None and recipe.data.replay.source == SELF
    if is_self_replay or has_changed_rows:
        # The backbone generates rows, or judges those that there are.
        read = (
            read_training_rows(recipe, sources, backbone)
            if backbone.has_weights
            else TrainingRows(sources, 0)
        )
    work = plan_work(suites, backbone, thinking=Thinking.of(recipe.evaluation))
    prepared = prepare_training(recipe, launch, backbone, sources, read, work)
    return replace(
        plan,
        without_weights=without_weights,
        rows=len(read.rows),
        replay_rows=read.replay,
        optimizer_steps=optimizer_steps(prepared.data.prepared.size, spec),
        thoughts=taught_thoughts(read.rows, backbone.tokenizer),
        on_backbone=_plan_on_backbone(recipe, backbone, prepared, launch_file, work),
    )


def _plan_on_backbone(
    recipe: Recipe,
    backbone: Backbone,
    prepared: PreparedTraining,
    launch_file: LaunchFile | None,
    work: Sequence[Work],
) -> BackbonePlan:
    """Return the parts of a plan that need the backbone.

    Memory is estimated for decoder-only language models; for other backbones, a step is timed.
    """
    model, data, held_out = prepared.model, prepared.data.prepared, prepared.data.held_out
    assert held_out is not None  # always set by prepare_training
    covered = coverage(model, recipe.adapter)
    machine: Forecast | None = None
    timing: TimeEstimate | None = None
    memory_per_process: MemoryEstimate | None = None
    device = (launch_file or process_state()).device.type
    planned = _resolved(recipe, backbone, launch_file)
    seconds: dict[str, float] = {}
    is_estimated = backbone.head is None and not is_encoder_decoder(backbone.model)
    if launch_file and is_estimated:
        config = backbone.model.config
        memory_per_process = estimate_per_process(planned, config, data, launch_file)
        seconds = _assumed_seconds(
            recipe, memory_per_process, data.counts.tokens, covered, launch_file.launch.processes
        )
    elif is_estimated:
        machine = forecast(recipe, backbone, model, data, held_out)
    elif not launch_file and recipe.adapter.method != "head":
        timing = estimate_time(recipe, backbone, model, data, held_out)
    merged: MergedMemory | None = None
    if is_estimated and recipe.adapter.method not in NOT_MERGED:
        frozen = covered.total_parameters - covered.trainable_parameters
        merged = estimate_merged(recipe, frozen, launch_file)
    return BackbonePlan(
        fingerprint=backbone.fingerprint.digest if backbone.has_weights else None,
        coverage=covered,
        counts=data.counts,
        audit=prepared.audit,
        checked=prepared.checked,
        hints=(
            *recipe_hints(recipe, data.counts, covered.trainable_parameters),
            *speed_hints(
                planned,
                backbone.model.config,
                data.lengths,
                machine,
                memory_per_process,
                launch_file,
            ),
        ),
        advice=_advice(recipe, backbone, prepared.data.sources, covered, device),
        samples=label_samples(data, backbone),
        forecast=machine,
        timing=timing,
        memory_per_process=memory_per_process,
        assumed_seconds=seconds,
        merged=merged,
        unused_by_task={one.name: one.task.unused for one in work if one.task.unused},
        attention=planned.backbone.attention,
        packing=resolve_packing(planned, _packing_attention(planned, backbone), device),
    )


def _advice(
    recipe: Recipe, backbone: Backbone, rows: Rows, covered: Coverage, device: str
) -> Advice:
    parameters = covered.total_parameters - covered.trainable_parameters
    situation = situation_of(recipe, rows, backbone.tokenizer, parameters, device == "cuda")
    measured = runs_on_the_same_rows(Path("runs"), rows, recipe.training.objective)
    return advise(recipe, situation, measured)


def _assumed_seconds(
    recipe: Recipe, memory: MemoryEstimate, tokens: int, covered: Coverage, processes: int
) -> dict[str, float]:
    if memory.device != "cuda":
        return {}
    return training_seconds(
        fitting_gpus(memory.total),
        tokens * recipe.training.epochs,
        covered.total_parameters,
        processes,
        recipe.training.gradient_checkpointing,
    )


def _resolved(recipe: Recipe, backbone: Backbone, launch_file: LaunchFile | None) -> Recipe:
    """Return the recipe with dtype and attention as here, or as on the GPUs of a launch file."""
    if launch_file is None:
        return recipe.model_copy(update={"backbone": backbone.spec})
    on_gpus = launch_file.device.type == "cuda"
    return as_on_gpu(recipe, backbone.model.config) if on_gpus else recipe


def _packing_attention(planned: Recipe, backbone: Backbone) -> str:
    return planned.backbone.attention if backbone.packing_attention else ""
