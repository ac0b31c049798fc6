"""Recipe to release in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.merging import merge
from lora_kit.pipeline.releasing import release, why_not_released
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.releasing.released import remarks
from lora_kit.runs.directory import peak_memory
from lora_kit.runs.session import Session
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import VERDICT_STATUS, ReleaseError
from lora_kit.runtime.launch import require_whole
from lora_kit.runtime.processes import process_state


@dataclass(frozen=True)
class Outcome:
    """A whole run.

    Attributes:
        verdict: of the evaluation.
        release: the release directory; `None` where the run did not pass.
        refusal: why it was not released; empty where it was.
        status: the exit status that says the same.
        peak_memory: resident bytes of this process at most.
    """

    directory: Path
    verdict: Verdict
    release: Path | None
    refusal: str
    status: int
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "run": str(self.directory),
            "verdict": self.verdict.to_dict(),
            "release": str(self.release) if self.release else None,
            "refusal": self.refusal,
            "peak_memory": self.peak_memory,
        }


def run(
    recipe: Recipe, output: Path | None = None, overwrite: bool = False, resume: bool = False
) -> Outcome:
    """Recipe to release: train, merge, evaluate with the merged model as an arm, release a PASS.

    Args:
        recipe: what to do.
        output: as in `train`.
        overwrite: as in `train`.
        resume: as in `train`; a training that is done is not done again.

    Raises:
        LoraKitError: if a stage refuses its input.
    """
    require_whole("run")
    trained = train(recipe, output, overwrite, resume)
    session = trained.session
    is_main = process_state().is_main_process
    if why := why_not_released(session.run, recipe):
        return _without_release(session, trained.work, why)
    if is_main:
        merge(session)
    process_state().wait_for_everyone()
    # The merged model is what ships, so a release asks what it does, whatever the recipe's arms.
    merged = MERGED_ARMS if recipe.merge.base == "both" else MERGED_ARMS[:1]
    verdict = evaluate(session, arms=merged, work=trained.work).verdict
    released, refusal, status = None, "", VERDICT_STATUS[verdict.decision]
    if is_main:
        try:
            made = release(session.run.root)
            released = made.directory
            for remark in remarks(made):
                say(remark)
        except ReleaseError as error:
            refusal, status = str(error), error.status
        _record_end(session)
    process_state().wait_for_everyone()
    return Outcome(session.run.root, verdict, released, refusal, status, peak_memory())


def _without_release(session: Session, work: Sequence[Work] | None, why: str) -> Outcome:
    """End with the evaluation where the adapter cannot be merged."""
    verdict = evaluate(session, work=work).verdict
    if process_state().is_main_process:
        _record_end(session)
    process_state().wait_for_everyone()
    status = VERDICT_STATUS[verdict.decision]
    return Outcome(session.run.root, verdict, None, why, status, peak_memory())


def _record_end(session: Session) -> None:
    session.run.update_record(
        finished=datetime.now(UTC).isoformat(timespec="seconds"), peak_memory=peak_memory()
    )
