"""The arm `plain`: the same training without added rows, weights and the alignment of domains.

It takes as many steps: with more rows in an epoch, more epochs would be what helps. (With 100 rows,
four changed copies of each raised macro-F1 by 0.09, five times the epochs without them by 0.10;
tests/benchmarks/RESULTS.md, Rows of heads.)
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from lora_kit.adapter.saved import read_saved_head
from lora_kit.evaluation.arms.text_heads import deciding
from lora_kit.evaluation.engine.arm import Arm, LoadedArms
from lora_kit.pipeline.training import train
from lora_kit.recipe.data import CHANGES
from lora_kit.recipe.identity import training_fields
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import NOT_PLAIN, PLAIN
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import json_sha256
from lora_kit.training.head_rows.augmentation import CHANGED
from lora_kit.training.head_rows.read import PSEUDO_LABELS


def plain_arm(session: Session) -> LoadedArms:
    """Return the arm; its adapter is trained on first use, unless the run already holds one.

    Args:
        session: run of a head that reads a text.

    Raises:
        EvaluationError: if the recipe has nothing that the arm leaves out.
    """
    if not session.recipe.left_out_of_plain:
        raise EvaluationError(
            f"{session.run.root}: arm plain: is the training without {', '.join(NOT_PLAIN)} (got a "
            "recipe with none of them). Fix: drop the arm"
        )
    recipe = _without_changes(session)
    rows = session.run.load_record().get("data", {}).get("rows_digest")
    trained = training_fields(recipe.model_dump(mode="json"))
    identity = json_sha256([PLAIN, session.backbone.fingerprint.digest, trained, rows])
    return LoadedArms(
        lambda: _trained(session, recipe), (Arm(PLAIN, identity, nullcontext, roles=("gain",)),)
    )


def _without_changes(session: Session) -> Recipe:
    recipe = session.recipe
    data = recipe.data.model_copy(update=dict.fromkeys(CHANGES))
    evaluation = recipe.evaluation.model_copy(update={"arms": ["base", "adapter"]})
    epochs = recipe.training.epochs * _examples_per_own_row(session)
    training = recipe.training.model_copy(update={"epochs": epochs, "domain_alignment": None})
    changes = {"data": data, "evaluation": evaluation, "training": training}
    return recipe.model_copy(update=changes)


def _examples_per_own_row(session: Session) -> float:
    """Return the examples of an epoch by those that are the recipe's own."""
    run = session.run
    data = run.load_record().get("data", {})
    examples = int(data.get("used", 0))
    sources: dict[str, Any] = data.get("sources", {})
    copies = sum(int(one["used"]) for name, one in sources.items() if name.startswith(CHANGED))
    found = (
        read_json(run.self_distillation, EvaluationError) if session.recipe.data.unlabeled else {}
    )
    added = len(found.get(PSEUDO_LABELS, {}).get("labels", ()))
    own = examples - copies - added
    return examples / own if own > 0 else 1.0


def _trained(session: Session, recipe: Recipe) -> Any:
    # The two need not fit into memory together.
    session.close()
    say(f"{session.run.plain}: training without {', '.join(session.recipe.left_out_of_plain)}")
    opened = train(recipe, session.run.plain, resume=True).session
    return deciding(opened.model, read_saved_head(opened.run.adapter), opened.backbone)
