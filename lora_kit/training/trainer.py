"""Training an adapter, from prepared data to the adapter on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.adapter.attach import ADAPTER_CONFIG
from lora_kit.backbone.heads import SavedClasses, SavedReward, save_head
from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import PreparedData
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory, peak_memory
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import TrainingError, TrainingInterruptedError
from lora_kit.runtime.files import whole_directory, write_json
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.out_of_memory import lacks_memory
from lora_kit.runtime.processes import any_process, process_state
from lora_kit.training import checkpoints
from lora_kit.training.arguments import optimizer_steps
from lora_kit.training.checkpointed_trainer import CheckpointedTrainer
from lora_kit.training.classes import ClassTask
from lora_kit.training.gradient_conflict import mean_cosines
from lora_kit.training.head_rows import learned_by_head
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.setup import TrainingSetup
from lora_kit.training.sharded import is_sharded
from lora_kit.training.trained_weights import Tensors, restore_weights, trained_weights
from lora_kit.training.validation import validation_loss

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. Losses are in nats per supervised token, memory in bytes.

    Attributes:
        kept_step: the step whose adapter it is; before the last one where the best is kept.
        gradient_conflict: mean cosine of the gradients of each two tasks, where they were looked at.
        seconds: of all attempts, without those that were lost after the last checkpoint.
    """

    steps: int
    kept_step: int
    tokens: int
    seconds: float
    tokens_per_second: float
    first_loss: float
    final_loss: float
    validation_before: float | None
    validation_after: float | None
    peak_memory: int
    gradient_conflict: dict[str, float] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the history, which `metrics.jsonl` has."""
        return {name: value for name, value in asdict(self).items() if name != "history"}


def train(
    recipe: Recipe,
    backbone: Backbone,
    model: PeftModel,
    data: PreparedData,
    validation: PreparedData | None,
    run: RunDirectory,
    resume: Path | None = None,
    texts: RetentionTexts | None = None,
) -> TrainingResult:
    """Train the adapter that is attached to `model` and save it in the run directory.

    Args:
        recipe: what to do.
        backbone: what it is done to.
        model: the backbone with its adapter.
        data: what is trained on.
        validation: held-out rows.
        run: where everything goes.
        resume: a checkpoint to go on from.
        texts: that the recipe's ways to keep look at.

    Raises:
        TrainingError: if the batch cannot be divided as asked, nothing is trained, or it diverges.
        TrainingInterruptedError: if a signal ended it; there is a checkpoint to go on from.
    """
    state = process_state()
    steps = optimizer_steps(data.size, recipe.training)
    cutting = MicroBatcher.of(recipe, state.num_processes, state.device)
    tokens = cutting.most_tokens(data.lengths)
    texts = texts or RetentionTexts()
    task = ClassTask.of(recipe, backbone, model, data, validation)
    loss = task.validation_loss if task else validation_loss
    measure = partial(loss, model, backbone, validation, tokens)
    # Sharded later, it does not lie where it is computed yet.
    before = measure() if resume is None and not current_launch().sharded else None
    with meter("training", steps, visible=state.is_main_process) as progress:
        attempt = TrainingSetup.prepare(
            recipe, backbone, model, data, cutting, run, progress, measure, texts, task
        )
        attempt.validation.before = before
        with attempt.interruption.listening():
            _train(attempt, resume)
        trainer = attempt.trainer
        if trainer.early_stopping and trainer.ended:
            trainer.early_stopping.look_at_the_end(trainer.state, trainer.control)
    # Of all: a signal may have reached one process after they last asked each other.
    if any_process(bool(attempt.interruption.received)) and not trainer.ended:
        raise TrainingInterruptedError(
            f"{run.root}: stopped by {attempt.interruption.received or 'a signal'} after step "
            f"{trainer.state.global_step} of {steps}; go on with --resume"
        )
    kept = trainer.state.global_step
    if attempt.validation.best_weights:
        restore_weights(model, attempt.validation.best_weights)
        kept = attempt.validation.best_step
    elif trainer.early_stopping and trainer.early_stopping.exceeded:
        trainer.early_stopping.put_back()
        kept = trainer.early_stopping.kept_step
    model.eval()
    after = measure()
    weights = trained_weights(model) if is_sharded(model) else None
    if state.is_main_process:
        save_adapter(model, backbone, run.adapter, weights, learned_by_head(backbone, data))
    state.wait_for_everyone()
    return _result(trainer, attempt.log.history, (attempt.validation.before, after), kept)


def _train(attempt: TrainingSetup, resume: Path | None) -> None:
    trainer = attempt.trainer
    if resume and checkpoints.load_if_ended(trainer, resume):
        attempt.log.on_train_begin(trainer.args, trainer.state, trainer.control)
        return
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise TrainingError(
            f"step {trainer.state.global_step + 1} does not fit into memory: its longest example "
            f"has {max((trainer.lengths[row] for row in trainer.rows), default=0)} tokens. Lower "
            "training.max_tokens_per_batch or training.micro_batch_size, or set "
            "training.gradient_checkpointing=true; `lora-kit plan` says what would fit"
        ) from error


def _result(
    trainer: CheckpointedTrainer,
    history: list[dict[str, float]],
    validation: tuple[float | None, float | None],
    kept_step: int,
) -> TrainingResult:
    steps = [entry for entry in history if "loss" in entry]
    seconds = steps[-1]["seconds"] if steps else 0.0
    return TrainingResult(
        steps=trainer.state.global_step,
        kept_step=kept_step,
        tokens=trainer.tokens,
        seconds=seconds,
        tokens_per_second=trainer.tokens / seconds if seconds else 0.0,
        first_loss=steps[0]["loss"] if steps else float("nan"),
        final_loss=steps[-1]["loss"] if steps else float("nan"),
        validation_before=validation[0],
        validation_after=validation[1],
        peak_memory=peak_memory(),
        gradient_conflict=mean_cosines(history),
        history=tuple(history),
    )


def save_adapter(
    model: PeftModel,
    backbone: Backbone,
    directory: Path,
    weights: Tensors | None = None,
    learned: SavedClasses | SavedReward | None = None,
) -> None:
    """Write a PEFT adapter directory with the backbone's fingerprint beside it.

    Args:
        model: whose adapter it is.
        backbone: of the model.
        directory: where it goes.
        weights: all that is trained, whole, where the model's own are divided over the processes.
        learned: what its head tells, where it has one.
    """
    with whole_directory(directory) as temporary:
        model.save_pretrained(
            str(temporary),
            safe_serialization=True,
            save_embedding_layers=False,
            state_dict=weights,
        )
        # PEFT leaves a card of blanks to be filled in; the release writes a real one.
        (temporary / "README.md").unlink(missing_ok=True)
        if learned is not None:
            save_head(backbone.model.config, learned, temporary)
        write_json(
            temporary / "backbone.json",
            {
                **backbone.spec.model_dump(mode="json"),
                "fingerprint": asdict(backbone.fingerprint)
                | {"digest": backbone.fingerprint.digest},
                "quantized_modules": list(backbone.quantized_modules),
            },
        )
        if not (temporary / ADAPTER_CONFIG).is_file():
            raise TrainingError(f"{directory}: PEFT wrote no {ADAPTER_CONFIG}")
