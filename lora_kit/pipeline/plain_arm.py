"""The arm `plain`: the same training without the rows that the recipe adds, and without weights."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from lora_kit.adapter.saved import read_saved_head
from lora_kit.adapter.saved_heads import SavedLabels
from lora_kit.backbone.devices import input_device
from lora_kit.evaluation.arms.thresholds import Thresholded
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.pipeline.training import train
from lora_kit.recipe.data import CHANGES
from lora_kit.recipe.identity import training_fields
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import PLAIN
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.hashes import json_sha256


def plain_arm(session: Session) -> LoadedArms:
    """Return the arm; its adapter is trained on first use, unless the run already holds one.

    Args:
        session: run of a head that reads a text.

    Raises:
        EvaluationError: if the recipe neither adds rows nor weighs them.
    """
    if not session.recipe.data.changed:
        names = ", ".join(f"data.{name}" for name in CHANGES)
        raise EvaluationError(
            f"{session.run.root}: arm plain: is the training without {names} (got a recipe with "
            "none of them). Fix: drop the arm"
        )
    recipe = _without_changes(session.recipe)
    rows = session.run.load_record().get("data", {}).get("rows_digest")
    trained = training_fields(recipe.model_dump(mode="json"))
    identity = json_sha256([PLAIN, session.backbone.fingerprint.digest, trained, rows])
    return LoadedArms(
        lambda: _trained(session, recipe), (Arm(PLAIN, identity, nullcontext, roles=("gain",)),)
    )


def _without_changes(recipe: Recipe) -> Recipe:
    data = recipe.data.model_copy(update=dict.fromkeys(CHANGES))
    evaluation = recipe.evaluation.model_copy(update={"arms": ["base", "adapter"]})
    return recipe.model_copy(update={"data": data, "evaluation": evaluation})


def _trained(session: Session, recipe: Recipe) -> Any:
    # The two need not fit into memory together.
    session.close()
    say(f"{session.run.plain}: training without {', '.join(session.recipe.data.changed)}")
    opened = train(recipe, session.run.plain, resume=True).session
    head = read_saved_head(opened.run.adapter)
    if not isinstance(head, SavedLabels):
        return opened.model
    thresholds = list(head.thresholds.values())
    return Thresholded(opened.model, thresholds, input_device(opened.backbone.model))
