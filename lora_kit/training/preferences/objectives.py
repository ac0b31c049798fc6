"""An objective's trainer, from the recipe's section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig

from lora_kit.backbone.load import Backbone
from lora_kit.data.units import PreparedUnits
from lora_kit.modeling.features import frozen_features
from lora_kit.recipe.objective import REFERENCED, Objective
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.console import say
from lora_kit.runtime.processes import process_state
from lora_kit.training.arguments import configured, micro_batch_size
from lora_kit.training.checkpointed_trainer import IDLE_STEPS, CheckpointedTrainer
from lora_kit.training.preferences.trainers import JudgedTrainer, PairTrainer
from lora_kit.training.steps import StepTrainer

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Setting:
    """What a trainer is made from.

    Attributes:
        directory: of the checkpoints.
        steps: of the optimizer, all in all.
    """

    recipe: Recipe
    backbone: Backbone
    model: PeftModel
    data: PreparedUnits
    directory: Path
    steps: int


def trainer_class(objective: Objective) -> type[CheckpointedTrainer]:
    """What trains an objective."""
    if objective == "orpo":
        from lora_kit.training.preferences.odds import OddsTrainer

        return OddsTrainer
    if objective == "grpo":
        from lora_kit.training.preferences.grpo import RewardTrainer

        return RewardTrainer
    if objective == "reward":
        from lora_kit.training.preferences.reward_model import PairedRewardTrainer

        return PairedRewardTrainer
    made: dict[Objective, type[CheckpointedTrainer]] = {"dpo": PairTrainer, "kto": JudgedTrainer}
    return made.get(objective, StepTrainer)


def objective_trainer(
    setting: Setting, callbacks: Sequence[TrainerCallback]
) -> CheckpointedTrainer:
    """The trainer of an objective besides sft; says what its reference policy is."""
    recipe = setting.recipe
    objective = recipe.training.objective
    if objective in REFERENCED and not (recipe.grpo and recipe.grpo.beta == 0):
        say(f"{objective}: the reference policy is the base, with the adapter switched off")
    state, spec = process_state(), recipe.training
    if objective == "grpo":
        return _reward_trainer(setting, callbacks)
    kind, own = _configuration(recipe)
    arguments = configured(
        kind, recipe, setting.backbone, state, setting.directory, setting.steps, **own
    )
    trainer: CheckpointedTrainer = trainer_class(objective)(
        model=setting.model,
        args=arguments,
        units=setting.data.units,
        processing_class=setting.backbone.tokenizer,
        batch_size=spec.batch_size,
        micro_batch_size=micro_batch_size(spec, state.num_processes, state.device),
        pad_token_id=setting.backbone.tokenizer.pad_token_id,
        save_total_limit=spec.save_total_limit,
        callbacks=list(callbacks),
        **_finished(setting),
    )
    if recipe.preference is not None and recipe.preference.loss == "hinge":
        # No pair is nearer than its margin: there is nothing to learn from them.
        trainer.idle_steps = IDLE_STEPS
    return trainer


def _finished(setting: Setting) -> dict[str, Any]:
    """What the frozen backbone makes of the answers, where a head alone is trained."""
    if setting.recipe.adapter.method != "head":
        return {}
    return {"features": frozen_features(setting.backbone, setting.model, setting.data)}


def _reward_trainer(setting: Setting, callbacks: Sequence[TrainerCallback]) -> CheckpointedTrainer:
    from lora_kit.modeling.generation import stop_token_ids
    from lora_kit.training.preferences.grpo import RewardTrainer
    from lora_kit.training.preferences.rewards import rewards_of

    recipe, state = setting.recipe, process_state()
    spec = recipe.grpo
    assert spec is not None  # the recipe sees to it
    answers = recipe.training.batch_size * spec.num_generations
    # A pass of answers to one prompt pads least.
    micro = recipe.training.micro_batch_size or spec.num_generations
    arguments = configured(
        GRPOConfig,
        recipe,
        setting.backbone,
        state,
        setting.directory,
        setting.steps,
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
    return RewardTrainer(
        model=setting.model,
        args=arguments,
        reward_funcs=rewards_of(spec, [unit.row for unit in setting.data.units]),
        units=setting.data.units,
        ends=stop_token_ids(setting.backbone),
        processing_class=setting.backbone.tokenizer,
        save_total_limit=recipe.training.save_total_limit,
        callbacks=list(callbacks),
    )


def _configuration(recipe: Recipe) -> tuple[type[Any], dict[str, Any]]:
    """TRL's, and what of it is the recipe's."""
    if recipe.reward is not None:
        # As in sft, chance in the adapter and in an encoder's layers does no harm.
        return RewardConfig, {
            "center_rewards_coefficient": recipe.reward.centering or None,
            "max_length": None,
            "disable_dropout": False,
        }
    spec = recipe.preference
    assert spec is not None  # the recipe sees to it
    # As in sft, the balance of experts is left as it is.
    whole: dict[str, Any] = {"beta": spec.beta, "max_length": None, "router_aux_loss_coef": 0.0}
    if recipe.training.objective == "dpo":
        # TRL's sigmoid does not go by the smoothing; its robust is sigmoid where there is none.
        loss = "robust" if spec.label_smoothing else spec.loss
        smoothing = {"label_smoothing": spec.label_smoothing}
        return DPOConfig, {**whole, **smoothing, "loss_type": [loss]}
    if recipe.training.objective == "kto":
        weights = {
            "desirable_weight": spec.desirable_weight,
            "undesirable_weight": spec.undesirable_weight,
        }
        return KTOConfig, {**whole, **weights}
    from lora_kit.training.preferences.odds import ORPOConfig

    # Without a reference, chance in the adapter does no harm.
    return ORPOConfig, {
        "beta": spec.beta,
        "max_length": recipe.data.max_length,
        "disable_dropout": False,
    }
