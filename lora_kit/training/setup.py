"""A training made ready: the trainer, and what goes along with its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import PreparedData
from lora_kit.data.units import PreparedUnits
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.console import Meter
from lora_kit.runtime.processes import any_process, process_state
from lora_kit.training import checkpoints
from lora_kit.training.arguments import arguments_of, like_length, optimizer_steps
from lora_kit.training.callbacks import Epochs, Interruption, MetricsLog
from lora_kit.training.checkpointed_trainer import CheckpointedTrainer
from lora_kit.training.classes import ClassifierTrainer, ClassTask
from lora_kit.training.distillation import Teacher
from lora_kit.training.gradient_conflict import GradientConflict
from lora_kit.training.guards import Guards
from lora_kit.training.learning_rates import GradualUnfreezing, has_own_rates
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.plot import plot_training
from lora_kit.training.preferences.objectives import Setting, objective_trainer, trainer_class
from lora_kit.training.rank_allocation import RankAllocation
from lora_kit.training.retention.methods import RetentionMethods
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.supervised import SupervisedTrainer
from lora_kit.training.validation import Validation

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingSetup:
    """A trainer and what goes along with it."""

    trainer: CheckpointedTrainer
    log: MetricsLog
    validation: Validation
    interruption: Interruption

    @classmethod
    def prepare(
        cls,
        recipe: Recipe,
        backbone: Backbone,
        model: PeftModel,
        data: PreparedData,
        cutting: MicroBatcher,
        run: RunDirectory,
        progress: Meter,
        measure: Callable[[], float | None],
        texts: RetentionTexts,
        task: ClassTask | None = None,
    ) -> TrainingSetup:
        """Put together what a recipe asks for; nothing is trained yet.

        Args:
            recipe: what to do.
            backbone: what it is done to.
            model: the backbone with its adapter.
            data: what is trained on.
            cutting: of a step into forward passes.
            run: where everything goes.
            progress: the bar.
            measure: gives the validation loss now.
            texts: that the recipe's ways to keep look at.
            task: where classes are learned, their loss and features.
        """
        state, spec = process_state(), recipe.training
        steps = optimizer_steps(data.size, spec)
        figures = trainer_class(spec.objective).figures
        log = MetricsLog(run.metrics, progress, state.is_main_process, _plotter(run), figures)
        validation = Validation(spec, measure, log.record)
        interruption = Interruption(any_process)
        callbacks = [validation, interruption, *_tensorboard(recipe, run)]
        trainer: CheckpointedTrainer
        if isinstance(data, PreparedUnits):
            setting = Setting(recipe, backbone, model, data, run.checkpoints, steps)
            trainer = objective_trainer(setting, callbacks)
        else:
            most = cutting.most_tokens(data.lengths)
            keepers = RetentionMethods.of(recipe, backbone, model, texts, cutting, most, log.record)
            trainer = _of_rows(recipe, backbone, data, cutting, keepers, task)(
                model=model,
                args=arguments_of(recipe, backbone, state, run.checkpoints, steps),
                validation=validation,
                gradient_conflict=_conflict(recipe, data, log),
                callbacks=[*callbacks, *keepers.callbacks],
            )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Epochs(lambda: trainer.sampler))
        where = partial(_where, trainer, data, run)
        may_end = backbone.head is not None
        choices = _choices(recipe, backbone)
        trainer.add_callback(Guards(choices, where, trainer.idle_steps, may_end_at_zero=may_end))
        for callback in _of_the_method(recipe, model, steps):
            trainer.add_callback(callback)
        trainer.add_callback(log)
        return cls(trainer, log, validation, interruption)


def _choices(recipe: Recipe, backbone: Backbone) -> int | None:
    """What the model chooses from; `None` where the loss is no logarithm of a probability."""
    if recipe.preference is not None and recipe.preference.loss == "ipo":
        return None
    if backbone.head:
        # A reward model chooses between the two of a pair.
        return max(len(backbone.head.classes), 2)
    found: int = backbone.model.config.get_text_config().vocab_size
    return found


def _of_rows(
    recipe: Recipe,
    backbone: Backbone,
    data: PreparedData,
    cutting: MicroBatcher,
    keepers: RetentionMethods,
    task: ClassTask | None,
) -> Callable[..., CheckpointedTrainer]:
    """The trainer of supervised rows, but for what it is told of the run."""
    spec = recipe.training
    kind: Callable[..., CheckpointedTrainer] = (
        partial(ClassifierTrainer, task=task)
        if task
        else partial(SupervisedTrainer, teacher=Teacher.of(spec.distillation))
    )
    return partial(
        kind,
        train_dataset=data.to_dataset(),
        processing_class=backbone.tokenizer,
        lengths=data.lengths.tolist(),
        batch_size=spec.batch_size,
        like_length=like_length(spec, process_state().device),
        micro_batch_size=cutting.rows,
        max_tokens_per_batch=cutting.tokens,
        packing=cutting.packing,
        pad_token_id=backbone.tokenizer.pad_token_id,
        save_total_limit=spec.save_total_limit,
        kl=keepers.kl,
        early_stopping=keepers.early_stopping,
        rates=spec if has_own_rates(spec) else None,
    )


def _conflict(recipe: Recipe, data: PreparedData, log: MetricsLog) -> GradientConflict | None:
    spec = recipe.training.gradient_conflict
    if spec is None:
        return None
    tasks = data.table.column("source").to_pylist()
    return GradientConflict(spec, tasks, list(data.counts.sources), recipe.seed, log.record)


def _of_the_method(recipe: Recipe, model: PeftModel, steps: int) -> list[TrainerCallback]:
    """What acts on gradients between the backward pass and the optimizer's step."""
    found: list[TrainerCallback] = []
    if recipe.adapter.method == "adalora":
        found.append(RankAllocation(model, steps))
    if recipe.training.gradual_unfreezing_steps:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found.append(GradualUnfreezing(trained, recipe.training.gradual_unfreezing_steps, steps))
    return found


def _where(trainer: CheckpointedTrainer, data: PreparedData, run: RunDirectory) -> str:
    """The rows of the step under way that this process has, and what to go back to."""
    rows = ", ".join(data.origin(n) for n in trainer.rows)
    last = checkpoints.newest(run.checkpoints)
    after = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    state = process_state()
    share = f" (of process {state.process_index})" if state.num_processes > 1 else ""
    return f"{rows}{share}; {after}"


def _plotter(run: RunDirectory) -> Callable[[list[dict[str, float]]], None]:
    def plot(history: list[dict[str, float]]) -> None:
        plot_training(history, (None, None), run.training_plot)

    return plot


def _tensorboard(recipe: Recipe, run: RunDirectory) -> list[Any]:
    if "tensorboard" not in recipe.training.report_to:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(run.root / "tensorboard")))]
