"""A training made ready: the trainer, and what goes along with its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import PrinterCallback

from lora_kit.backbone import Backbone
from lora_kit.console import Meter
from lora_kit.data.dataset import PreparedData
from lora_kit.processes import any_process, process_state
from lora_kit.recipe import Recipe
from lora_kit.run import RunDirectory
from lora_kit.training import checkpoints
from lora_kit.training.arguments import arguments_of, like_length, optimizer_steps
from lora_kit.training.callbacks import Epochs, Interruption, MetricsLog
from lora_kit.training.guards import Guards
from lora_kit.training.passes import Cutting
from lora_kit.training.plot import plot_training
from lora_kit.training.rank_allocation import RankAllocation
from lora_kit.training.rates import GradualUnfreezing, has_own_rates
from lora_kit.training.retention.anchor import Anchor
from lora_kit.training.retention.budget import Budget
from lora_kit.training.retention.consolidation import Consolidation
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.supervised import SupervisedTrainer
from lora_kit.training.validation import Validation

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Attempt:
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
    ) -> Attempt:
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
        """
        state, spec = process_state(), recipe.training
        steps = optimizer_steps(len(data.examples), spec)
        log = MetricsLog(run.metrics, progress, state.is_main_process, _plotter(run))
        validation = Validation(spec, measure, log.record)
        interruption = Interruption(any_process)
        anchor, budget = _keepers(recipe, backbone, model, texts, cutting, data, log)
        own = [
            *(validation, interruption),
            *([budget] if budget else []),
            *_consolidation(recipe, backbone, model, texts),
            *_tensorboard(recipe, run),
        ]
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
            rates=spec if has_own_rates(spec) else None,
            callbacks=own,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Epochs(lambda: trainer.sampler))
        where = partial(_where, trainer, data, run)
        trainer.add_callback(Guards(backbone.model.config.get_text_config().vocab_size, where))
        if recipe.adapter.method == "adalora":
            trainer.add_callback(RankAllocation(model, steps))
        if spec.unfreeze_steps:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            trainer.add_callback(GradualUnfreezing(trained, spec.unfreeze_steps, steps))
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
        rows, tokens = cutting.rows, cutting.tokens
        anchor = Anchor(model, examples, spec.anchor, recipe.seed, pad, rows, tokens)
    if spec.budget and texts.budget:
        most = cutting.most_tokens(data.lengths)
        examples = texts.budget.examples
        budget = Budget(model, backbone, examples, spec.budget, log.record, most)
    return anchor, budget


def _consolidation(
    recipe: Recipe, backbone: Backbone, model: PeftModel, texts: RetentionTexts
) -> list[Consolidation]:
    spec = recipe.retention.consolidation
    if spec is None or texts.consolidation is None:
        return []
    return [Consolidation(model, backbone, texts.consolidation.examples, spec)]


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
