"""Recipe -> adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.adapter.attach import Coverage, coverage
from lora_kit.adapter.initial_factors import initialise
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone
from lora_kit.data.audit.audit import refuse_problems
from lora_kit.data.prepared import PreparedData
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.engine.work import Work, suites_of
from lora_kit.pipeline.loaded_inputs import LoadedInputs, load_inputs
from lora_kit.pipeline.training_digests import (
    reward_model_digests,
    rows_digest_now,
    training_digests,
)
from lora_kit.preflight.prepare import PreparedTraining, prepare_training
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TokenMaskingSpec
from lora_kit.runs.directory import RunDirectory
from lora_kit.runs.record import start_record
from lora_kit.runs.session import Session, open_run
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import write_json, write_text
from lora_kit.runtime.launch import Launch, current_launch
from lora_kit.runtime.machine import versions
from lora_kit.runtime.processes import process_state, require_agreement
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.plot import plot_training
from lora_kit.training.resuming import begin_run, choose_run, recorded_result, require_same_training
from lora_kit.training.retention.token_masking import mask_improbable_tokens
from lora_kit.training.self_distillation.rows import read_training_rows
from lora_kit.training.trainer import TrainingResult, run_training
from lora_kit.training.validation import EndsEarly

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        run: run directory.
        result: steps, losses and durations.
        data: training rows; `None` if an earlier call had finished the training.
        work: tokenized items of the recipe's suites; `None` likewise.
    """

    run: RunDirectory
    result: TrainingResult
    data: TrainingData | None = None
    work: Sequence[Work] | None = None

    @cached_property
    def session(self) -> Session:
        """The run, reopened, so that what is judged is the adapter as it is on disk.

        Raises:
            LoraKitError: if what was saved cannot be loaded.
        """
        return open_run(self.run.root, self.data)

    def close(self) -> None:
        """Free the memory of the session's model, if the session has been opened."""
        if "session" in vars(self):
            self.session.close()


def train(
    recipe: Recipe,
    output: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    loaded: LoadedInputs | None = None,
    ends_early: EndsEarly | None = None,
) -> Trained:
    """Train a recipe's adapter into a new run directory, or resume an interrupted run.

    Args:
        recipe: the recipe.
        output: run directory; by default `runs/NAME`, numbered if that exists.
        overwrite: if true, `output` may hold an earlier run, which is replaced.
        resume: if true, continue from the newest checkpoint in `output` (by default in the newest
            run of the recipe's name); without a checkpoint, training starts anew.
        loaded: inputs of another recipe that are this one's as well, and whose backbone gets the
            adapter; by default they are loaded.
        ends_early: function that ends the training by its validation loss.

    Raises:
        LoraKitError: if anything is refused; nothing is trained then.
        TrainingInterruptedError: if a signal interrupted the training; `resume` continues it.
    """
    if recipe.data.cross_validation is not None:
        raise RecipeError(
            "data.cross_validation: only lora-kit run leaves rows out (got "
            f"{recipe.data.cross_validation} folds). Fix: lora-kit run, or --set "
            "data.cross_validation=null for an adapter of all rows"
        )
    require_agreement({"recipe": recipe.to_yaml(), "versions of packages": str(versions())})
    chosen = choose_run(recipe, output, overwrite, resume)
    launch = current_launch()
    done = None if chosen.is_new else recorded_result(chosen.run)
    if done:
        return _trained_already(chosen.run, recipe, done)
    loaded = loaded or load_inputs(recipe)
    begun = _begun(recipe, launch, loaded, None if chosen.is_new else chosen.run)
    ready, backbone, data = begun.ready, begun.backbone, begun.data
    if not chosen.is_new:
        require_same_training(chosen.run, recipe, backbone, begun.inputs)
    run = begin_run(recipe, output, overwrite) if chosen.is_new else chosen.run
    say(
        f"{run.root}: {data.counts.used} rows, {data.counts.tokens} tokens, "
        f"{data.counts.supervised_tokens} supervised, {data.counts.truncated} truncated, "
        f"{data.counts.dropped} dropped; {begun.coverage.trainable_parameters:,} of "
        f"{begun.coverage.total_parameters:,} parameters are trained"
    )
    is_main = process_state().is_main_process
    if chosen.checkpoint:
        say(f"{run.root}: resuming from {chosen.checkpoint.name}")
    elif is_main:
        _begin_record(run, recipe, begun)
    inputs = TrainingInputs(
        recipe,
        backbone,
        ready.model,
        data,
        ready.data.held_out,
        run,
        texts=ready.texts,
        launch=launch,
        row_weights=ready.data.weights,
        target=ready.target,
    )
    result = run_training(inputs, chosen.checkpoint, ends_early)
    if loaded.take_off:
        loaded.take_off(ready.model)
    for pair, cosine in result.gradient_conflict.items():
        say(f"{run.root}: gradients of {pair}: mean cosine {cosine:+.2f}{_against(cosine)}")
    if is_main:
        validation = (result.validation_before, result.validation_after)
        run.update_record(training=result.to_dict())
        # Only now: killed in between, a finished training would be repeated.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        plot_training(result.history, validation, run.training_plot)
    return Trained(run, result, ready.data, loaded.work)


def _against(cosine: float) -> str:
    if cosine > -0.1:
        return ""
    return "; they conflict: try training.gradient_conflict.pcgrad, or an adapter for each"


@dataclass(frozen=True)
class _Begun:
    """Everything that a training needs, the same on all processes.

    Attributes:
        said: rows, answers, classes and weights that the base gave, by kind.
        data: training data, after token masking.
        work: tokenized items of the recipe's suites.
        inputs: digests of everything that the training depends on besides recipe and backbone.
    """

    ready: PreparedTraining
    backbone: Backbone
    said: Mapping[str, Any]
    data: PreparedData
    work: Sequence[Work]
    coverage: Coverage
    inputs: dict[str, str]


def _begun(
    recipe: Recipe, launch: Launch, loaded: LoadedInputs, earlier: RunDirectory | None
) -> _Begun:
    """Read and check everything before step 1.

    Args:
        recipe: the recipe.
        launch: launch of this training.
        loaded: backbone, rows and items.
        earlier: the run that is resumed, if any.

    Raises:
        LoraKitError: for the first thing that is refused.
    """
    backbone, sources, work = loaded.backbone, loaded.sources, loaded.work
    read = read_training_rows(recipe, sources, backbone, earlier)
    ready = prepare_training(recipe, launch, backbone, sources, read, work)
    for warning in ready.checked.warnings:
        say(warning)
    refuse_problems(ready.audit)
    inputs = training_digests(recipe, ready)
    require_agreement(
        {
            "files of the backbone": backbone.fingerprint.digest,
            "suites": str({suite.name: suite.digest for suite in suites_of(work)}),
            **inputs,
        }
    )
    data, model = ready.data.prepared, ready.model
    rows = ready.texts.initial_rows(data.examples)
    initialise(model, backbone, recipe.adapter, rows, recipe.seed)
    if recipe.retention.token_masking:
        data = _masked(recipe.retention.token_masking, recipe, data, model, backbone)
    covered = coverage(model, recipe.adapter)
    return _Begun(ready, backbone, read.generated, data, work, covered, inputs)


def _begin_record(run: RunDirectory, recipe: Recipe, begun: _Begun) -> None:
    """Start the run's record, and remove the results of an earlier run that is overwritten."""
    for stale in run.results:
        shutil.rmtree(stale, ignore_errors=True)
    for file in (
        run.record,
        run.rescale_record,
        run.rescale_plot,
        run.self_distillation,
        run.label_errors,
    ):
        file.unlink(missing_ok=True)
    # The recipe first: a run that is killed before it has one cannot be continued.
    start_record(run, recipe, begun.backbone, "train")
    if begun.said:
        write_json(run.self_distillation, begun.said)
    if errors := begun.ready.audit.label_errors:
        write_json(run.label_errors, errors.to_dict())
    run.update_record(
        inputs=begun.inputs,
        data=begun.data.counts.to_dict()
        | {"digest": begun.data.digest, "rows_digest": begun.ready.data.sources.digest()},
        audit=begun.ready.audit.to_dict(),
        coverage=begun.coverage.to_dict(),
        suites={suite.name: suite.digest for suite in suites_of(begun.work)},
    )


def _masked(
    spec: TokenMaskingSpec, recipe: Recipe, data: PreparedData, model: PeftModel, backbone: Backbone
) -> PreparedData:
    """Remove the labels of tokens that are improbable under the base, and report their number."""
    state = process_state()
    attention = backbone.packing_attention
    batcher = MicroBatcher.of(recipe, state.num_processes, state.device, attention)
    most = batcher.largest_pass_tokens(data.lengths)
    left = mask_improbable_tokens(data, model, backbone, spec, most)
    before, after = data.counts.supervised_tokens, left.counts.supervised_tokens
    say(
        f"retention.token_masking: {before - after} of {before} supervised tokens "
        f"({1 - after / before:.0%}) are improbable under the base and get no label"
    )
    return left


def _trained_already(run: RunDirectory, recipe: Recipe, done: TrainingResult) -> Trained:
    """Return a finished training of the same recipe, backbone and rows.

    What comes after the training is done as the recipe says now.

    Raises:
        LoraKitError: if recipe, backbone or rows have changed.
    """
    trained = Trained(run, done)
    session = trained.session
    inputs = rows_digest_now(session) | reward_model_digests(recipe)
    require_same_training(run, _with_commit(recipe), session.backbone, inputs)
    later = {"evaluation": recipe.evaluation, "merge": recipe.merge}
    now = session.recipe.model_copy(update=later)
    # In the place of the property's value, whose model is loaded already.
    vars(trained)["session"] = replace(session, recipe=now)
    if process_state().is_main_process:
        write_text(run.recipe, now.to_yaml())
    say(f"{run.root}: the training is already finished")
    return trained


def _with_commit(recipe: Recipe) -> Recipe:
    """Return the recipe with the commit that the backbone's branch or tag is now, if it has one."""
    if recipe.backbone.revision is None:
        return recipe
    commit = resolve(recipe.backbone).revision
    return recipe.model_copy(
        update={"backbone": recipe.backbone.model_copy(update={"revision": commit})}
    )
