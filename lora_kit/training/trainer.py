"""Training an adapter, from prepared data to the adapter on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import PrinterCallback

from lora_kit.adapters import ADAPTER_CONFIG
from lora_kit.backbone import Backbone
from lora_kit.console import Meter, meter
from lora_kit.data.dataset import PreparedData
from lora_kit.errors import TrainingError, TrainingInterruptedError
from lora_kit.files import whole_directory, write_json
from lora_kit.launch import current_launch
from lora_kit.memory import lacks_memory
from lora_kit.processes import any_process, process_state
from lora_kit.recipe import Recipe
from lora_kit.run import RunDirectory, peak_memory
from lora_kit.training import checkpoints
from lora_kit.training.arguments import arguments_of, like_length, optimizer_steps
from lora_kit.training.callbacks import Epochs, Interruption, MetricsLog
from lora_kit.training.guards import Guards
from lora_kit.training.passes import Cutting
from lora_kit.training.plot import plot_training
from lora_kit.training.rank_allocation import RankAllocation
from lora_kit.training.retention.anchor import Anchor
from lora_kit.training.retention.budget import Budget
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.sharded import is_sharded
from lora_kit.training.supervised import SupervisedTrainer
from lora_kit.training.validation import Validation, validation_loss

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. Losses are in nats per supervised token, memory in bytes.

    Attributes:
        kept_step: the step whose adapter it is; before the last one where the best is kept.
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
    steps = optimizer_steps(len(data.examples), recipe.training)
    cutting = Cutting.of(recipe, state.num_processes, state.device)
    tokens = cutting.most_tokens(data.lengths)
    texts = texts or RetentionTexts()
    measure = partial(validation_loss, model, backbone, validation, tokens)
    # Sharded later, it does not lie where it is computed yet.
    before = measure() if resume is None and not current_launch().sharded else None
    with meter("training", steps, visible=state.is_main_process) as progress:
        attempt = _Attempt.prepare(
            recipe, backbone, model, data, cutting, run, progress, measure, texts
        )
        attempt.validation.before = before
        with attempt.interruption.listening():
            _train(attempt, resume)
    trainer = attempt.trainer
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
        save_adapter(model, backbone, run.adapter, weights)
    state.wait_for_everyone()
    return _result(trainer, attempt.log.history, (attempt.validation.before, after), kept)


def _train(attempt: _Attempt, resume: Path | None) -> None:
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


@dataclass(frozen=True)
class _Attempt:
    """A trainer and what goes along with it."""

    trainer: SupervisedTrainer
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
        cutting: Cutting,
        run: RunDirectory,
        progress: Meter,
        measure: Callable[[], float | None],
        texts: RetentionTexts,
    ) -> _Attempt:
        state, spec = process_state(), recipe.training
        steps = optimizer_steps(len(data.examples), spec)
        log = MetricsLog(run.metrics, progress, state.is_main_process, _plotter(run))
        validation = Validation(spec, measure, log.record)
        interruption = Interruption(any_process)
        anchor, budget = _keepers(recipe, backbone, model, texts, cutting, data, log)
        own = [validation, interruption, *([budget] if budget else []), *_tensorboard(recipe, run)]
        trainer = SupervisedTrainer(
            model=model,
            args=arguments_of(recipe, backbone, state, run.checkpoints, steps),
            train_dataset=data.to_dataset(),
            processing_class=backbone.tokenizer,
            lengths=data.lengths.tolist(),
            batch_size=spec.batch_size,
            like_length=like_length(spec, state.device),
            micro_batch_size=cutting.rows,
            batch_tokens=cutting.tokens,
            packing=cutting.packing,
            pad_token_id=backbone.tokenizer.pad_token_id,
            keep_checkpoints=spec.keep_checkpoints,
            validation=validation,
            anchor=anchor,
            budget=budget,
            callbacks=own,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Epochs(lambda: trainer.sampler))
        where = partial(_where, trainer, data, run)
        trainer.add_callback(Guards(backbone.model.config.get_text_config().vocab_size, where))
        if recipe.adapter.method == "adalora":
            trainer.add_callback(RankAllocation(model, steps))
        trainer.add_callback(log)
        return cls(trainer, log, validation, interruption)


def _keepers(
    recipe: Recipe,
    backbone: Backbone,
    model: PeftModel,
    texts: RetentionTexts,
    cutting: Cutting,
    data: PreparedData,
    log: MetricsLog,
) -> tuple[Anchor | None, Budget | None]:
    """What holds the training to the base, and what ends it for forgetting."""
    spec, anchor, budget = recipe.retention, None, None
    if spec.anchor and texts.anchor:
        pad = backbone.tokenizer.pad_token_id
        examples = texts.anchor.examples
        anchor = Anchor(model, examples, spec.anchor, recipe.seed, pad, cutting.rows)
    if spec.budget and texts.budget:
        most = cutting.most_tokens(data.lengths)
        examples = texts.budget.examples
        budget = Budget(model, backbone, examples, spec.budget, log.record, most)
    return anchor, budget


def _where(trainer: SupervisedTrainer, data: PreparedData, run: RunDirectory) -> str:
    """The rows of the step under way that this process has, and what to go back to."""
    rows = ", ".join(data.examples[n].origin for n in trainer.rows)
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
    if "tensorboard" not in recipe.training.log_to:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(run.root / "tensorboard")))]


def _result(
    trainer: SupervisedTrainer,
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
        history=tuple(history),
    )


def save_adapter(
    model: PeftModel,
    backbone: Backbone,
    directory: Path,
    weights: checkpoints.Tensors | None = None,
) -> None:
    """Write a PEFT adapter directory with the backbone's fingerprint beside it.

    Args:
        model: whose adapter it is.
        backbone: of the model.
        directory: where it goes.
        weights: all that is trained, whole, where the model's own are divided over the processes.
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
