"""The rows that a run's adapter was trained on, read again for what it is compared with."""

from __future__ import annotations

from lora_kit.adapters import evaluated, switched_off
from lora_kit.data.dataset import prepare
from lora_kit.data.prepared import PreparedData
from lora_kit.errors import EvaluationError
from lora_kit.own_words.rows import read_rows
from lora_kit.session import Session


def read_again(session: Session) -> PreparedData:
    """The rows as they are now, replay and the base's own words among them.

    Raises:
        DataError: if a source is gone, or a row is wrong.
    """
    recipe, backbone = session.recipe, session.backbone
    # What the base once said is asked again where the run and the cache have lost it.
    with evaluated(session.model), switched_off(session.model):
        read = read_rows(recipe, backbone, session.run)
    classes = backbone.head.classes if backbone.head else ()
    objective = recipe.training.objective
    return prepare(read.rows, backbone.tokenizer, recipe.data, read.replay, objective, classes)


def same_rows(session: Session, arm: str) -> PreparedData:
    """The rows, if they are those of the training.

    Args:
        session: of the run.
        arm: what is to learn from them too.

    Raises:
        EvaluationError: if they are others: the two could not be compared.
    """
    data = read_again(session)
    if session.run.load_record().get("data", {}).get("digest") not in (None, data.digest):
        raise EvaluationError(
            f"{session.run.root}: arm {arm}: the rows of data.train are others than the adapter "
            "was trained on, so that the two cannot be compared; take back what was changed"
        )
    return data
