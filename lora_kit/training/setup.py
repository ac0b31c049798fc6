"""Trainer and callbacks of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from lora_kit.data.units import PreparedUnits
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.console import Meter
from lora_kit.runtime.processes import any_process, process_state
from lora_kit.training import checkpoints
from lora_kit.training.acceleration import compile_blocks
from lora_kit.training.arguments import training_arguments
from lora_kit.training.callbacks import Interruption, MetricsLog, SamplerEpochs
from lora_kit.training.checkpointed_trainer import CheckpointedTrainer
from lora_kit.training.distillation import Teacher
from lora_kit.training.domain_alignment.trainer import AlignedHeadTrainer
from lora_kit.training.drift import HeldOutDrift
from lora_kit.training.gradient_conflict import GradientConflict
from lora_kit.training.guards import Guards
from lora_kit.training.heads import HeadTask, HeadTrainer
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.learning_rates import GradualUnfreezing
from lora_kit.training.masked import MaskedTrainer, masker_of
from lora_kit.training.plot import plot_training
from lora_kit.training.preferences.objectives import objective_trainer, trainer_class
from lora_kit.training.rank_allocation import RankAllocation
from lora_kit.training.retention_methods import RetentionMethods
from lora_kit.training.supervised import SupervisedTrainer
from lora_kit.training.trained_weights import restore_weights
from lora_kit.training.validation import EndsEarly, Validation


@dataclass(frozen=True)
class TrainingSetup:
    """A trainer and those of its callbacks that hold results.

    Attributes:
        trainer: the trainer, with all callbacks added.
        log: metrics of each step.
        validation: validation losses and best weights.
        interruption: signal that interrupted the training, if any.
    """

    trainer: CheckpointedTrainer
    log: MetricsLog
    validation: Validation
    interruption: Interruption

    @classmethod
    def prepare(
        cls,
        inputs: TrainingInputs,
        task: HeadTask | None,
        measure: Callable[[], float | None],
        drift: HeldOutDrift | None,
        progress: Meter,
        ends_early: EndsEarly | None = None,
    ) -> TrainingSetup:
        """Create the trainer of a recipe and its callbacks.

        Args:
            inputs: recipe, model and data.
            task: loss and frozen features of a head that reads a text; `None` for others.
            measure: returns the current validation loss.
            drift: drift of held-out prompts, measured with the validation loss.
            progress: progress bar.
            ends_early: function that ends the training by its validation loss.
        """
        recipe, run = inputs.recipe, inputs.run
        if recipe.training.compile:
            compile_blocks(inputs.model)
        is_main = process_state().is_main_process
        kind = AlignedHeadTrainer if inputs.target else trainer_class(recipe.training.objective)
        plot = partial(plot_training, validation=(None, None), path=run.training_plot)
        log = MetricsLog(run.metrics, progress, is_main, plot, kind.logged_metrics)
        measure_drift = drift.measure if drift else None
        validation = Validation(recipe.training, measure, log.record, measure_drift, ends_early)
        interruption = Interruption(any_process)
        callbacks = [validation, interruption, *_tensorboard(recipe, run)]
        if isinstance(inputs.data, PreparedUnits):
            trainer = objective_trainer(inputs, callbacks)
        else:
            trainer = _example_trainer(inputs, task, validation, log, callbacks)
        trainer.remove_callback(PrinterCallback)
        for callback in (
            SamplerEpochs(lambda: trainer.sampler),
            Guards(
                _chance_loss(inputs, task),
                partial(_location, trainer, inputs),
                trainer.idle_steps,
                may_end_at_zero=inputs.backbone.head is not None,
                deepspeed=inputs.launch.deepspeed,
                in_nats=_is_in_nats(inputs, task),
            ),
            *_method_callbacks(inputs),
            log,
        ):
            trainer.add_callback(callback)
        return cls(trainer, log, validation, interruption)

    def restore_best(self, model: torch.nn.Module) -> int:
        """Restore the best weights, if the recipe keeps them, and return their step.

        Without them the weights, and the step, are the last ones.

        Raises:
            TrainingError: if no weights were within the retention margin.
        """
        early_stopping = self.trainer.early_stopping
        if self.validation.best_weights:
            restore_weights(model, self.validation.best_weights)
            return self.validation.best_step
        if early_stopping and early_stopping.exceeded:
            early_stopping.restore_kept()
            return early_stopping.kept_step
        return int(self.trainer.state.global_step)


def _example_trainer(
    inputs: TrainingInputs,
    task: HeadTask | None,
    validation: Validation,
    log: MetricsLog,
    callbacks: Sequence[TrainerCallback],
) -> CheckpointedTrainer:
    """Return the trainer of the objectives that train on examples: sft, text, mlm and heads."""
    retention = RetentionMethods.of(inputs, log.record)
    return _trainer_kind(inputs, task)(
        inputs=inputs,
        retention=retention,
        validation=validation,
        gradient_conflict=_gradient_conflict(inputs, log),
        args=training_arguments(
            SFTConfig, inputs, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
        ),
        callbacks=[*callbacks, *retention.callbacks],
    )


def _trainer_kind(
    inputs: TrainingInputs, task: HeadTask | None
) -> Callable[..., CheckpointedTrainer]:
    masker = masker_of(inputs)
    if masker is not None:
        return partial(MaskedTrainer, masker=masker)
    if task is not None:
        return partial(AlignedHeadTrainer if inputs.target else HeadTrainer, task=task)
    return partial(SupervisedTrainer, teacher=Teacher.of(inputs.recipe.training.distillation))


def _gradient_conflict(inputs: TrainingInputs, log: MetricsLog) -> GradientConflict | None:
    spec, data = inputs.recipe.training.gradient_conflict, inputs.data
    if spec is None:
        return None
    tasks = data.table.column("source").to_pylist()
    return GradientConflict(spec, tasks, list(data.counts.sources), inputs.recipe.seed, log.record)


def _chance_loss(inputs: TrainingInputs, task: HeadTask | None) -> float | None:
    """Return the loss of a model that has learned nothing; `None` if it is not known."""
    if task is None and not _is_in_nats(inputs, task):
        return None
    if task:
        return task.loss.chance
    if inputs.recipe.training.objective == "embedding":
        return math.log(2 * inputs.recipe.training.batch_size)  # at most so many texts a pair
    if inputs.backbone.head and inputs.backbone.head.kind != "mlm":
        return math.log(2)  # a reward model chooses between the two answers of a pair
    vocabulary: int = inputs.backbone.model.config.get_text_config().vocab_size
    return math.log(vocabulary)


def _is_in_nats(inputs: TrainingInputs, task: HeadTask | None) -> bool:
    preference = inputs.recipe.preference
    return task.loss.in_nats if task else preference is None or preference.loss != "ipo"


def _method_callbacks(inputs: TrainingInputs) -> list[TrainerCallback]:
    """Return the hooks on gradients that the adapter method and the recipe require."""
    spec = inputs.recipe.training
    callbacks: list[TrainerCallback] = []
    if inputs.recipe.adapter.method == "adalora":
        callbacks.append(RankAllocation(inputs.model, inputs.steps))
    if spec.gradual_unfreezing_steps:
        trained = {n: p for n, p in inputs.model.named_parameters() if p.requires_grad}
        unfreezing = GradualUnfreezing(trained, spec.gradual_unfreezing_steps, inputs.steps)
        callbacks.append(unfreezing)
    return callbacks


def _location(trainer: CheckpointedTrainer, inputs: TrainingInputs) -> str:
    """Return this process's rows of the current step and the last checkpoint, for messages."""
    rows = ", ".join(inputs.data.origin(n) for n in trainer.rows)
    last = checkpoints.newest(inputs.run.checkpoints)
    checkpoint = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    state = process_state()
    share = f" (of process {state.process_index})" if state.num_processes > 1 else ""
    return f"{rows}{share}; {checkpoint}"


def _tensorboard(recipe: Recipe, run: RunDirectory) -> list[Any]:
    if "tensorboard" not in recipe.training.report_to:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(run.root / "tensorboard")))]
