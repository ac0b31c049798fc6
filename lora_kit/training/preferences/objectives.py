"""Construction of the trainer of each objective from a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig

from lora_kit.data.units import PreparedUnits, Unit
from lora_kit.modeling.features import frozen_features
from lora_kit.recipe.embedding import EmbeddingSpec
from lora_kit.recipe.objective import REFERENCED, Objective
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.console import say
from lora_kit.runtime.processes import process_state
from lora_kit.training.arguments import training_arguments
from lora_kit.training.checkpointed_trainer import IDLE_STEPS, CheckpointedTrainer
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.preferences.trainers import DpoStepTrainer, KtoStepTrainer
from lora_kit.training.step_sizes import answers_per_pass, answers_per_process, length_group_size
from lora_kit.training.steps import StepTrainer
from lora_kit.training.supervised import SupervisedTrainer


def trainer_class(objective: Objective) -> type[CheckpointedTrainer]:
    """Return the trainer class of an objective; its `logged_metrics` go to `metrics.jsonl`."""
    if objective == "orpo":
        from lora_kit.training.preferences.orpo import OrpoStepTrainer

        return OrpoStepTrainer
    if objective == "grpo":
        from lora_kit.training.preferences.grpo import GrpoStepTrainer

        return GrpoStepTrainer
    if objective == "sdft":
        from lora_kit.training.preferences.sdft import SdftStepTrainer

        return SdftStepTrainer
    if objective == "reward":
        from lora_kit.training.preferences.reward_model import RewardModelTrainer

        return RewardModelTrainer
    if objective == "embedding":
        from lora_kit.training.preferences.embeddings import EmbeddingTrainer

        return EmbeddingTrainer
    classes: dict[Objective, type[CheckpointedTrainer]] = {
        "dpo": DpoStepTrainer,
        "kto": KtoStepTrainer,
        "sft": SupervisedTrainer,
        "text": SupervisedTrainer,
    }
    return classes.get(objective, StepTrainer)


def objective_trainer(
    inputs: TrainingInputs, callbacks: Sequence[TrainerCallback]
) -> CheckpointedTrainer:
    """Build the trainer of an objective on units; report its reference."""
    recipe, data = inputs.recipe, inputs.data
    assert isinstance(data, PreparedUnits)  # the data of all these objectives
    objective = recipe.training.objective
    if objective in REFERENCED and not (recipe.grpo and recipe.grpo.beta == 0):
        say(f"{objective}: the reference policy is the base, with the adapter disabled")
    spec = recipe.training
    if objective == "grpo":
        return _grpo_trainer(inputs, data.units, callbacks)
    if objective == "sdft":
        say("sdft: the teacher is the base, with the adapter disabled")
        return _sdft_trainer(inputs, data.units, callbacks)
    config_class, options = _trl_config(recipe)
    extra: dict[str, Any] = {}
    if objective == "embedding":
        extra = _embedding_arguments(inputs)
    if recipe.adapter.method == "head":
        extra["features"] = frozen_features(inputs.backbone, inputs.model, data)
    trainer: CheckpointedTrainer = trainer_class(objective)(
        model=inputs.model,
        args=training_arguments(config_class, inputs, **options),
        units=data.units,
        processing_class=inputs.backbone.tokenizer,
        batch_size=spec.batch_size,
        micro_batch_size=length_group_size(spec, process_state().device),
        pad_token_id=inputs.backbone.tokenizer.pad_token_id,
        save_total_limit=spec.save_total_limit,
        callbacks=list(callbacks),
        **extra,
    )
    if recipe.preference is not None and recipe.preference.loss == "hinge":
        # The hinge loss is 0 once every pair exceeds its margin, so steps without loss are normal.
        trainer.idle_steps = IDLE_STEPS
    return trainer


def _grpo_trainer(
    inputs: TrainingInputs, units: Sequence[Unit], callbacks: Sequence[TrainerCallback]
) -> CheckpointedTrainer:
    from lora_kit.modeling.generation import stop_token_ids
    from lora_kit.training.preferences.grpo import GrpoStepTrainer
    from lora_kit.training.preferences.rewards import reward_functions

    recipe, spec = inputs.recipe, inputs.recipe.grpo
    assert spec is not None  # the recipe fills the section in for this objective
    # The answers to a prompt are compared with one another, and stay on one process.
    answers = answers_per_process(recipe, process_state().num_processes)
    # A pass with the answers to a single prompt needs the least padding.
    micro = min(recipe.training.micro_batch_size or spec.num_generations, answers)
    arguments = training_arguments(
        GRPOConfig,
        inputs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=answers // micro,
        num_generations=spec.num_generations,
        max_completion_length=spec.max_new_tokens,
        temperature=spec.temperature,
        beta=spec.beta,
        loss_type=spec.loss,
        disable_dropout=True,
        router_aux_loss_coef=0.0,
    )
    return GrpoStepTrainer(
        model=inputs.model,
        args=arguments,
        reward_funcs=reward_functions(spec, [unit.row for unit in units]),
        units=units,
        ends=stop_token_ids(inputs.backbone),
        processing_class=inputs.backbone.tokenizer,
        save_total_limit=recipe.training.save_total_limit,
        callbacks=list(callbacks),
    )


def _sdft_trainer(
    inputs: TrainingInputs, units: Sequence[Unit], callbacks: Sequence[TrainerCallback]
) -> CheckpointedTrainer:
    from lora_kit.modeling.generation import stop_token_ids
    from lora_kit.training.preferences.sdft import SDFTConfig, SdftStepTrainer, sdft_options

    recipe, spec, state = inputs.recipe, inputs.recipe.sdft, process_state()
    assert spec is not None  # the recipe fills the section in for this objective
    answers = answers_per_process(recipe, state.num_processes)
    micro = answers_per_pass(recipe.training, answers, state.device)
    vocabulary = inputs.backbone.model.config.get_text_config().vocab_size
    trainer = SdftStepTrainer(
        model=inputs.model,
        args=training_arguments(
            SDFTConfig,
            inputs,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=answers // micro,
            **sdft_options(spec, vocabulary),
        ),
        units=units,
        spec=spec,
        ends=stop_token_ids(inputs.backbone),
        processing_class=inputs.backbone.tokenizer,
        save_total_limit=recipe.training.save_total_limit,
        callbacks=list(callbacks),
    )
    if spec.skipped_tokens:
        # All answers of a step may be shorter.
        trainer.idle_steps = IDLE_STEPS
    return trainer


def _embedding_arguments(inputs: TrainingInputs) -> dict[str, Any]:
    """Return the arguments of an embedding's trainer; report cached gradients."""
    recipe, head = inputs.recipe, inputs.backbone.head
    assert head is not None  # an embedding has its pooling
    spec = recipe.training
    per_pass = spec.micro_batch_size
    if per_pass is not None and per_pass < spec.batch_size:
        say(
            f"embedding: gradients are cached, so that the negatives are those of all "
            f"{spec.batch_size} pairs of a step; in several passes, each text is read twice"
        )
    return {
        "head": head,
        "spec": recipe.embedding or EmbeddingSpec(),
        "pairs_per_pass": per_pass,
    }


def _trl_config(recipe: Recipe) -> tuple[type[Any], dict[str, Any]]:
    """Return the configuration class of the trainer and the options that the recipe sets."""
    if recipe.training.objective == "embedding":
        return TrainingArguments, {}
    if recipe.reward is not None:
        # No reference model is compared with, so dropout is safe, as in sft.
        return RewardConfig, {
            "center_rewards_coefficient": recipe.reward.centering or None,
            "max_length": None,
            "disable_dropout": False,
        }
    spec = recipe.preference
    assert spec is not None  # the recipe fills the section in for these objectives
    # No load-balancing loss for experts is added, as in sft.
    shared: dict[str, Any] = {"beta": spec.beta, "max_length": None, "router_aux_loss_coef": 0.0}
    if recipe.training.objective == "dpo":
        # TRL's `sigmoid` ignores label smoothing; its `robust` equals `sigmoid` without smoothing.
        loss = "robust" if spec.label_smoothing else spec.loss
        smoothing = {"label_smoothing": spec.label_smoothing}
        return DPOConfig, {**shared, **smoothing, "loss_type": [loss]}
    if recipe.training.objective == "kto":
        weights = {
            "desirable_weight": spec.desirable_weight,
            "undesirable_weight": spec.undesirable_weight,
        }
        return KTOConfig, {**shared, **weights}
    from lora_kit.training.preferences.orpo import ORPOConfig

    # ORPO has no reference model to compare with, so dropout in the adapter is safe.
    return ORPOConfig, {
        "beta": spec.beta,
        "max_length": recipe.data.max_length,
        "disable_dropout": False,
    }
