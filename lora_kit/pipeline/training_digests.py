"""Digests of what a training depends on, by which a run is resumed with the same inputs only."""

from __future__ import annotations

from lora_kit.preflight.prepare import PreparedTraining
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError
from lora_kit.training.distillation import teacher_digest
from lora_kit.training.preferences.reward_runs import reward_digests
from lora_kit.training.rows_of_run import rows_of_run
from lora_kit.training.target_texts import FIELD as TARGET_FIELD

TRAINING_ROWS = "the rows of data.train"


def training_digests(recipe: Recipe, ready: PreparedTraining) -> dict[str, str]:
    """Return digests of the rows, texts and models that a training depends on, by name."""
    teacher, data, target = recipe.training.distillation, ready.data, ready.target
    return {
        TRAINING_ROWS: data.prepared.digest,
        **({"the rows of data.validation": data.held_out.digest} if data.held_out else {}),
        **{f"the texts of {name}": one.digest for name, one in ready.texts.by_field.items()},
        **({f"the texts of {TARGET_FIELD}": target.digest} if target else {}),
        **(
            {"the files of training.distillation.teacher": teacher_digest(teacher)}
            if teacher
            else {}
        ),
        **reward_model_digests(recipe),
    }


def reward_model_digests(recipe: Recipe) -> dict[str, str]:
    """Return digests of the reward models of a recipe, by name."""
    return {
        f"the reward model of grpo.rewards: {name}": digest
        for name, digest in reward_digests(recipe).items()
    }


def rows_digest_now(session: Session) -> dict[str, str]:
    """Return the digest of the rows; nothing if they are gone, since the adapter exists already."""
    try:
        return {TRAINING_ROWS: rows_of_run(session).prepared.digest}
    except DataError as error:
        say(f"{session.run.root}: the rows cannot be compared with those of the training: {error}")
        return {}
