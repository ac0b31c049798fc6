"""Recipe to adapter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.adapter.attach import Coverage, coverage
from lora_kit.adapter.initial_factors import initialise
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.audit.audit import refuse
from lora_kit.data.dataset import open_rows, training_classes
from lora_kit.data.prepared import PreparedData
from lora_kit.data.training_data import TrainingData
from lora_kit.evaluation.engine.work import FEWSHOT, Work, plan_work, suites_of
from lora_kit.evaluation.suite import load_suites
from lora_kit.preflight.ready import Ready, make_ready
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TokenMaskingSpec
from lora_kit.runs.directory import RunDirectory, start_record, versions
from lora_kit.runs.session import Session, open_run
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError, TrainingError
from lora_kit.runtime.files import write_json
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.processes import process_state, require_agreement
from lora_kit.training.distillation import teacher_digest
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.plot import plot_training
from lora_kit.training.preferences.reward_runs import reward_digests
from lora_kit.training.resuming import begin_run, choose_run, finished, require_same
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.retention.token_masking import without_improbable
from lora_kit.training.rows_of_run import rows_of_run
from lora_kit.training.self_distillation.rows import Records, read_rows
from lora_kit.training.trainer import TrainingResult
from lora_kit.training.trainer import train as train_adapter

if TYPE_CHECKING:
    from peft import PeftModel

TRAINING_ROWS = "the rows of data.train"


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        data: the rows that were trained on; `None` where the training was finished before.
        work: the tokenized items of the recipe's suites; `None` where it was finished before.
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


def train(
    recipe: Recipe, output: Path | None = None, overwrite: bool = False, resume: bool = False
) -> Trained:
    """Train a recipe's adapter into a new run directory, or go on with a run that was cut off.

    Args:
        recipe: what to do.
        output: the run directory; by default `runs/NAME`, numbered if there is one.
        overwrite: whether `output` may hold an earlier run.
        resume: whether to go on from the newest checkpoint in `output` (by default in the newest
            run of the recipe's name); without one, training begins anew.

    Raises:
        LoraKitError: if anything is refused; nothing is trained then.
        TrainingInterruptedError: if a signal ended it; `resume` goes on.
    """
    require_agreement({"recipe": recipe.to_yaml(), "versions of packages": str(versions())})
    chosen = choose_run(recipe, output, overwrite, resume)
    if chosen.checkpoint and current_launch().deepspeed:
        raise TrainingError(
            f"{chosen.run.root}: under DeepSpeed nothing goes on from a checkpoint. Go on under "
            "another launch file (accelerate_configs/ddp.yaml, fsdp2.yaml), or begin anew without "
            "--resume"
        )
    done = None if chosen.is_new else finished(chosen.run)
    if done:
        return _trained_already(chosen.run, recipe, done)
    begun = _begun(recipe, None if chosen.is_new else chosen.run)
    ready, backbone, data = begun.ready, begun.backbone, begun.data
    if not chosen.is_new:
        require_same(chosen.run, recipe, backbone, begun.inputs)
    run = begin_run(recipe, output, overwrite) if chosen.is_new else chosen.run
    say(
        f"{run.root}: {data.counts.used} rows, {data.counts.tokens} tokens, "
        f"{data.counts.supervised_tokens} supervised, {data.counts.truncated} cut, "
        f"{data.counts.dropped} dropped; {begun.coverage.trainable_parameters:,} of "
        f"{begun.coverage.total_parameters:,} parameters are trained"
    )
    is_main = process_state().is_main_process
    if chosen.checkpoint:
        say(f"{run.root}: going on from {chosen.checkpoint.name}")
    elif is_main:
        _begin_record(run, recipe, begun)
    result = train_adapter(
        recipe,
        backbone,
        ready.model,
        data,
        ready.data.held_out,
        run,
        chosen.checkpoint,
        ready.texts,
    )
    for pair, cosine in result.gradient_conflict.items():
        say(f"{run.root}: gradients of {pair}: mean cosine {cosine:+.2f}{_against(cosine)}")
    if is_main:
        validation = (result.validation_before, result.validation_after)
        run.update_record(training=result.to_dict())
        # Not before: killed in between, a training that is done would be done again.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        plot_training(result.history, validation, run.training_plot)
    return Trained(run, result, ready.data, begun.work)


def _against(cosine: float) -> str:
    if cosine > -0.1:
        return ""
    return (
        "; they pull against each other: try training.gradient_conflict.pcgrad, or an adapter each"
    )


@dataclass(frozen=True)
class _Begun:
    """All that a training takes, agreed upon by all processes.

    Attributes:
        said: what the base said of its own.
        data: what is learned of that which was read.
        inputs: digests of what it goes by.
    """

    ready: Ready
    backbone: Backbone
    said: dict[str, Records]
    data: PreparedData
    work: Sequence[Work]
    coverage: Coverage
    inputs: dict[str, str]


def _begun(recipe: Recipe, earlier: RunDirectory | None) -> _Begun:
    """Read and check everything that a mistake in could cost a training.

    Args:
        recipe: what to do.
        earlier: a run that goes on.

    Raises:
        LoraKitError: of the first thing that is refused.
    """
    suites = load_suites(recipe.evaluation.suites)
    sources = open_rows(recipe.data, recipe.seed, recipe.training.objective)
    classes = tuple(training_classes(sources, recipe))
    backbone = load(resolve(recipe.backbone), recipe.backbone, classes)
    shots = recipe.evaluation.shots if FEWSHOT in recipe.evaluation.arms else 0
    work = plan_work(suites, backbone, shots, sources if shots else ())
    read = read_rows(recipe, sources, backbone, earlier)
    ready = make_ready(recipe, backbone, sources, read, work)
    for warning in ready.checked.warnings:
        say(warning)
    refuse(ready.audit)
    inputs = _inputs(recipe, ready.data, ready.texts)
    require_agreement(
        {
            "files of the backbone": backbone.fingerprint.digest,
            "suites": str({suite.name: suite.digest for suite in suites}),
            **inputs,
        }
    )
    data, model = ready.data.prepared, ready.model
    initialise(model, backbone, recipe.adapter, data.examples, recipe.seed)
    if recipe.retention.token_masking:
        data = _masked(recipe.retention.token_masking, recipe, data, model, backbone)
    covered = coverage(model, recipe.adapter)
    return _Begun(ready, backbone, read.said, data, work, covered, inputs)


def _inputs(recipe: Recipe, data: TrainingData, texts: RetentionTexts) -> dict[str, str]:
    """Digests of what a training goes by besides its recipe and backbone, by what it is."""
    teacher = recipe.training.distillation
    return {
        TRAINING_ROWS: data.prepared.digest,
        **({"the rows of data.validation": data.held_out.digest} if data.held_out else {}),
        **{f"the texts of {name}": one.digest for name, one in texts.named.items()},
        **(
            {"the files of training.distillation.teacher": teacher_digest(teacher)}
            if teacher
            else {}
        ),
        **_reward_models(recipe),
    }


def _reward_models(recipe: Recipe) -> dict[str, str]:
    return {
        f"the reward model of grpo.rewards: {name}": digest
        for name, digest in reward_digests(recipe).items()
    }


def _begin_record(run: RunDirectory, recipe: Recipe, begun: _Begun) -> None:
    """Write down what is trained on what; what an earlier run left there is taken away.

    Its verdict, which --overwrite gave up, is not this adapter's.
    """
    for stale in run.results:
        shutil.rmtree(stale, ignore_errors=True)
    for file in (run.record, run.rescale_record, run.rescale_plot, run.self_distillation):
        file.unlink(missing_ok=True)
    if begun.said:
        write_json(run.self_distillation, begun.said)
    start_record(run, recipe, begun.backbone, "train")
    run.update_record(
        inputs=begun.inputs,
        data=begun.data.counts.to_dict() | {"digest": begun.data.digest},
        audit=begun.ready.audit.to_dict(),
        coverage=begun.coverage.to_dict(),
        suites={suite.name: suite.digest for suite in suites_of(begun.work)},
    )


def _masked(
    spec: TokenMaskingSpec, recipe: Recipe, data: PreparedData, model: PeftModel, backbone: Backbone
) -> PreparedData:
    """The data without the labels that `retention.token_masking` takes away, and says how many it took."""
    state = process_state()
    most = MicroBatcher.of(recipe, state.num_processes, state.device).most_tokens(data.lengths)
    left = without_improbable(data, model, backbone, spec, most)
    before, after = data.counts.supervised_tokens, left.counts.supervised_tokens
    say(
        f"retention.token_masking: {before - after} of {before} supervised tokens "
        f"({1 - after / before:.0%}) are improbable under the base and not learned"
    )
    return left


def _trained_already(run: RunDirectory, recipe: Recipe, done: TrainingResult) -> Trained:
    """A training that is finished, if it was one of this recipe, on this backbone and these rows.

    Raises:
        LoraKitError: if it was not.
    """
    trained = Trained(run, done)
    session = trained.session
    require_same(run, recipe, session.backbone, _rows_now(session) | _reward_models(recipe))
    say(f"{run.root}: is trained already")
    return trained


def _rows_now(session: Session) -> dict[str, str]:
    """Their digest; none where they are gone: the adapter, which is there, needs them no more."""
    try:
        return {TRAINING_ROWS: rows_of_run(session).prepared.digest}
    except DataError as error:
        say(f"{session.run.root}: whether it was trained on these rows cannot be told: {error}")
        return {}
