"""Training of an adapter: from prepared data to the adapter directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lora_kit.adapter.saved import save_adapter
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import TrainingError, TrainingInterruptedError
from lora_kit.runtime.machine import GpuPeak, gpu_peak, peak_memory
from lora_kit.runtime.out_of_memory import is_out_of_memory_error
from lora_kit.runtime.processes import any_process, process_state
from lora_kit.training import checkpoints
from lora_kit.training.acceleration import faster_on_cpu
from lora_kit.training.checkpointed_trainer import CheckpointedTrainer
from lora_kit.training.domain_alignment.trainer import remove_classifier
from lora_kit.training.drift import HeldOutDrift
from lora_kit.training.gradient_conflict import mean_cosines
from lora_kit.training.head_start import start_at_the_mean
from lora_kit.training.head_summary import finish_head
from lora_kit.training.heads import HeadTask
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.masked import masked_validation_loss, masker_of
from lora_kit.training.preferences.answer_log_probs import restoring_forward
from lora_kit.training.setup import TrainingSetup
from lora_kit.training.sharded import is_sharded
from lora_kit.training.sharded_4bit import optimizer_restorer, shard_4bit_layers
from lora_kit.training.trained_weights import trained_weights
from lora_kit.training.validation import EndsEarly, validation_loss


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        steps: optimizer steps taken.
        kept_step: step of the saved adapter; earlier than `steps` if the best weights were kept.
        tokens: tokens of all forward passes on all processes, without padding.
        seconds: duration, including interrupted attempts up to their last checkpoint.
        tokens_per_second: `tokens` divided by `seconds`.
        first_loss: loss of the first step, in nats per supervised token.
        final_loss: loss of the last step, in nats per supervised token.
        validation_before: held-out loss before training, in nats per supervised token.
        validation_after: held-out loss of the saved adapter, in nats per supervised token.
        peak_memory: peak main memory of this process, in bytes.
        peak_gpu_memory: peak memory on this process's GPU; `None` without one.
        drift: divergence of the saved adapter from the base on held-out prompts, in nats per token;
            `None` where `HeldOutDrift.of` does not measure it.
        gradient_conflict: mean cosine of each pair of tasks' gradients, if they were compared.
        history: metrics of each step, as in `metrics.jsonl`.
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
    peak_gpu_memory: GpuPeak | None = None
    drift: float | None = None
    gradient_conflict: dict[str, float] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON, without `history`, which `metrics.jsonl` holds."""
        return {name: value for name, value in asdict(self).items() if name != "history"}


def run_training(
    inputs: TrainingInputs, resume: Path | None = None, ends_early: EndsEarly | None = None
) -> TrainingResult:
    """Train the adapter that is attached to `inputs.model` and save it in the run directory.

    Args:
        inputs: recipe, model and data.
        resume: checkpoint to resume from; `None` to start anew.
        ends_early: function that ends the training by its validation loss.

    Raises:
        TrainingError: if the batch cannot be divided between the processes, nothing is trained, the
            training diverges, or a step does not fit into memory.
        TrainingInterruptedError: if a signal interrupted the training; a checkpoint was written.
    """
    state, model, run = process_state(), inputs.model, inputs.run
    max_tokens = inputs.max_tokens_per_pass
    task = HeadTask.of(inputs)
    start_at_the_mean(inputs, task)
    loss: Callable[..., float | None] = task.validation_loss if task else validation_loss
    if (masker := masker_of(inputs)) is not None:
        loss = partial(masked_validation_loss, masker=masker)
    measure = partial(loss, model, inputs.backbone, inputs.held_out, max_tokens)
    drift = HeldOutDrift.of(inputs)
    # A model that will be sharded is not on its device yet; `Validation` measures it later.
    before = measure() if resume is None and not inputs.launch.sharded else None
    with (
        restoring_forward(model),
        meter("training", inputs.steps, visible=state.is_main_process) as progress,
    ):
        setup = TrainingSetup.prepare(inputs, task, measure, drift, progress, ends_early)
        setup.validation.before = before
        trainer = setup.trainer
        with setup.interruption.listening():
            if resume and checkpoints.load_if_ended(trainer, resume):
                setup.log.on_train_begin(trainer.args, trainer.state, trainer.control)
            else:
                if inputs.launch.fsdp and inputs.backbone.quantized_modules:
                    shard_4bit_layers(model, trainer.accelerator)
                    restore = optimizer_restorer(model, trainer.create_optimizer())
                    trainer.restore_optimizer = restore
                compiled = inputs.recipe.training.compile
                faster = faster_on_cpu(model, inputs.launch, compiled)
                with _explained_out_of_memory(trainer), faster:
                    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if trainer.early_stopping and trainer.ended:
            trainer.early_stopping.measure_at_end(trainer.state, trainer.control)
    # A collective call: a signal may have reached one process after the last step's agreement.
    if any_process(bool(setup.interruption.received)) and not trainer.ended:
        raise TrainingInterruptedError(
            f"{run.root}: interrupted by {setup.interruption.received or 'a signal'} after step "
            f"{trainer.state.global_step} of {inputs.steps}. Fix: rerun with --resume"
        )
    kept_step = setup.restore_best(model)
    remove_classifier(model)
    model.eval()
    after, drift_after = measure(), drift.measure() if drift else None
    # DeepSpeed rounds the weights in the model to the backbone's dtype.
    gathered = inputs.launch.deepspeed or is_sharded(model)
    weights = trained_weights(model) if gathered else None
    if state.is_main_process:
        head = finish_head(inputs, task, weights)
        save_adapter(model, inputs.backbone, run.adapter, weights, head)
    state.wait_for_everyone()
    validation = (setup.validation.before, after)
    return _result(trainer, setup.log.history, validation, drift_after, kept_step)


@contextmanager
def _explained_out_of_memory(trainer: CheckpointedTrainer) -> Iterator[None]:
    """Name the step and its longest example if a step does not fit into memory.

    Raises:
        TrainingError: instead of the out-of-memory error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory_error(error):
            raise
        longest = max((trainer.lengths[row] for row in trainer.rows), default=0)
        raise TrainingError(
            f"training.micro_batch_size: step {trainer.state.global_step + 1} does not fit into "
            f"memory (got an example of {longest} tokens). Fix: lower it or "
            "training.max_tokens_per_batch, or set training.gradient_checkpointing=true; "
            "`lora-kit plan` shows what fits"
        ) from error


def _result(
    trainer: CheckpointedTrainer,
    history: list[dict[str, float]],
    validation: tuple[float | None, float | None],
    drift: float | None,
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
        peak_gpu_memory=gpu_peak(),
        drift=drift,
        gradient_conflict=mean_cosines(history),
        history=tuple(history),
    )
