"""Training rows of a run, for baselines that are fitted on the same rows."""

from __future__ import annotations

from lora_kit.data.dataset import open_rows, prepare
from lora_kit.data.training_data import TrainingData
from lora_kit.modeling.modes import adapter_disabled, eval_mode
from lora_kit.runs.session import Session
from lora_kit.runtime.errors import EvaluationError
from lora_kit.training.self_distillation.rows import read_training_rows


def rows_of_run(session: Session) -> TrainingData:
    """Return the run's training rows, from the session or else from their sources.

    Raises:
        DataError: if a source is gone, or a row is malformed.
    """
    if session.data is not None:
        return session.data
    recipe, backbone = session.recipe, session.backbone
    objective = recipe.training.objective
    sources = open_rows(recipe.data, recipe.seed, objective)
    # Self-distillation rows are generated again if neither the run nor the cache holds them.
    with eval_mode(session.model), adapter_disabled(session.model):
        read = read_training_rows(recipe, sources, backbone, session.run)
    outputs = backbone.head.outputs if backbone.head else None
    prepared = prepare(read.rows, backbone.tokenizer, recipe.data, read.replay, objective, outputs)
    own = read.sources_of(sources)
    return TrainingData(own, read.rows, read.replay, prepared, weights=read.weights)


def require_trained_on(session: Session, data: TrainingData, arm: str) -> None:
    """Refuse to compare an arm with the adapter if it would learn from other rows.

    Args:
        session: run with its adapter.
        data: current training rows.
        arm: name of the arm that is fitted on them.

    Raises:
        EvaluationError: if the rows are not those of the training.
    """
    if session.run.load_record().get("data", {}).get("digest") not in (None, data.prepared.digest):
        raise EvaluationError(
            f"{session.run.root}: arm {arm}: the rows of data.train differ from those that the "
            "adapter was trained on, so the two cannot be compared. Fix: restore the rows"
        )
