"""Rules about `training`: batches, learning rates and what is decided by validation."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections
from lora_kit.recipe.training import TrainingSpec


def uneven_micro_batches(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse micro batches that do not fill a batch."""
    training = recipe.training
    if training.objective == "grpo" or training.micro_batch_size is None:
        return  # grpo divides answers, see `objective.grpo_micro_batches`
    if training.batch_size % training.micro_batch_size:
        yield conflict(
            "training.micro_batch_size",
            "training.batch_size",
            reason=f"does not divide training.batch_size {training.batch_size}",
            given=training.micro_batch_size,
            fix="use a divisor of the batch size",
        )


def decay_without_wsd(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse `decay_ratio` with a scheduler that ignores it."""
    training = recipe.training
    default = TrainingSpec.model_fields["decay_ratio"].default
    if training.lr_scheduler != "wsd" and training.decay_ratio != default:
        yield conflict(
            "training.decay_ratio",
            "training.lr_scheduler",
            reason=f"is read by lr_scheduler wsd only, and lr_scheduler is {training.lr_scheduler}",
            given=training.decay_ratio,
            fix="remove it, or set training.lr_scheduler: wsd",
        )


def decisions_without_validation(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse decisions by the validation loss where it is not measured."""
    training = recipe.training
    for name in ("early_stopping_patience", "keep_best"):
        if getattr(training, name) and training.eval_steps is None:
            yield conflict(
                f"training.{name}",
                "training.eval_steps",
                reason="is decided by the validation loss, which is not measured in between",
                given=getattr(training, name),
                fix="set training.eval_steps",
            )
    if training.eval_steps and not recipe.data.validation:
        yield conflict(
            "training.eval_steps",
            "data.validation",
            reason="there are no held-out rows whose loss could be measured",
            given=training.eval_steps,
            fix="name a source in data.validation",
        )


def noise_on_packed_rows(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse noise whose size depends on the other examples of a packed row."""
    alpha = recipe.training.neftune_noise_alpha
    if alpha is not None and recipe.data.packing:
        yield conflict(
            "training.neftune_noise_alpha",
            "data.packing",
            reason="scales its noise by the length of a row, which packing fills with several "
            "examples",
            given=alpha,
            fix="set data.packing: false",
        )


def conflict_of_one_source(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse `gradient_conflict` with a single task."""
    if recipe.training.gradient_conflict is not None and len(recipe.data.train) < 2:
        yield conflict(
            "training.gradient_conflict",
            "data.train",
            reason="compares the sources of data.train as tasks, and there is one",
            fix="add a source, or remove the section",
        )
