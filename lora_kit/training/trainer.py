"""Training an adapter, from prepared data to the adapter on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.adapters import ADAPTER_CONFIG
from lora_kit.backbone import Backbone
from lora_kit.console import meter
from lora_kit.data.dataset import PreparedData
from lora_kit.errors import TrainingError, TrainingInterruptedError
from lora_kit.files import whole_directory, write_json
from lora_kit.heads import SavedClasses, SavedReward, save_head
from lora_kit.launch import current_launch
from lora_kit.memory import lacks_memory
from lora_kit.processes import any_process, process_state
from lora_kit.recipe import Recipe
from lora_kit.run import RunDirectory, peak_memory
from lora_kit.training import checkpoints
from lora_kit.training.arguments import optimizer_steps
from lora_kit.training.attempt import Attempt
from lora_kit.training.classes import ClassTask
from lora_kit.training.conflict import mean_cosines
from lora_kit.training.head_rows import learned_by_head
from lora_kit.training.passes import Cutting
from lora_kit.training.resumable import Resumable
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.sharded import is_sharded
from lora_kit.training.validation import validation_loss

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. Losses are in nats per supervised token, memory in bytes.

    Attributes:
        kept_step: the step whose adapter it is; before the last one where the best is kept.
        conflict: mean cosine of the gradients of each two tasks, where they were looked at.
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
    conflict: dict[str, float] = field(default_factory=dict)
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
    cutting = Cutting.of(recipe, state.num_processes, state.device)
    tokens = cutting.most_tokens(data.lengths)
    texts = texts or RetentionTexts()
    task = ClassTask.of(recipe, backbone, model, data, validation)
    loss = task.validation_loss if task else validation_loss
    measure = partial(loss, model, backbone, validation, tokens)
    # Sharded later, it does not lie where it is computed yet.
    before = measure() if resume is None and not current_launch().sharded else None
    with meter("training", steps, visible=state.is_main_process) as progress:
        attempt = Attempt.prepare(
            recipe, backbone, model, data, cutting, run, progress, measure, texts, task
        )
        attempt.validation.before = before
        with attempt.interruption.listening():
            _train(attempt, resume)
        trainer = attempt.trainer
        if trainer.budget and trainer.ended:
            trainer.budget.look_at_the_end(trainer.state, trainer.control)
    # Of all: a signal may have reached one process after they last asked each other.
    if any_process(bool(attempt.interruption.received)) and not trainer.ended:
        raise TrainingInterruptedError(
            f"{run.root}: stopped by {attempt.interruption.received or 'a signal'} after step "
            f"{trainer.state.global_step} of {steps}; go on with --resume"
        )
    kept = trainer.state.global_step
    if attempt.validation.best_weights:
        checkpoints.restore_weights(model, attempt.validation.best_weights)
        kept = attempt.validation.best_step
    elif trainer.budget and trainer.budget.exceeded:
        trainer.budget.put_back()
        kept = trainer.budget.kept_step
    model.eval()
    after = measure()
    weights = checkpoints.trained_weights(model) if is_sharded(model) else None
    if state.is_main_process:
        save_adapter(model, backbone, run.adapter, weights, learned_by_head(backbone, data))
    state.wait_for_everyone()
    return _result(trainer, attempt.log.history, (attempt.validation.before, after), kept)


def _train(attempt: Attempt, resume: Path | None) -> None:
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
            "training.batch_tokens or training.micro_batch_size, or set "
            "training.gradient_checkpointing=true; `lora-kit plan` says what would fit"
        ) from error


def _result(
    trainer: Resumable,
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
        conflict=mean_cosines(history),
        history=tuple(history),
    )


def save_adapter(
    model: PeftModel,
    backbone: Backbone,
    directory: Path,
    weights: checkpoints.Tensors | None = None,
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
