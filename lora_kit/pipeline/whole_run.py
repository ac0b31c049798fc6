"""Recipe -> release in one call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_kit.backbone.devices import require_gpus
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.merging import merge
from lora_kit.pipeline.releasing import release, why_not_merged, why_not_released
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.releasing.release import release_notes
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import VERDICT_STATUS, ReleaseError
from lora_kit.runtime.launch import needs_one_process
from lora_kit.runtime.machine import GpuPeak, gpu_peak, peak_memory
from lora_kit.runtime.out_of_memory import free_memory
from lora_kit.runtime.processes import continue_alone, process_state

STAGES = ("train", "merge and verify", "evaluate", "release")


def _say_stage(number: int, remark: str = "") -> None:
    """Print which stage begins, counted from 1."""
    say(f"stage {number}/{len(STAGES)}: {STAGES[number - 1]}{remark and f' ({remark})'}")


@dataclass(frozen=True)
class RunOutcome:
    """Result of a whole run.

    Attributes:
        directory: run directory.
        verdict: verdict of the evaluation.
        release: release directory; `None` if the run was not released.
        refusal: reason why it was not released; empty if it was.
        status: exit status of the command.
        peak_memory: largest resident main memory of this process, in bytes.
        peak_gpu_memory: peak memory on this process's GPU; `None` without one.
    """

    directory: Path
    verdict: Verdict
    release: Path | None
    refusal: str
    status: int
    peak_memory: int
    peak_gpu_memory: GpuPeak | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "run": str(self.directory),
            "verdict": self.verdict.to_dict(),
            "release": str(self.release) if self.release else None,
            "refusal": self.refusal,
            "peak_memory": self.peak_memory,
            "peak_gpu_memory": asdict(self.peak_gpu_memory) if self.peak_gpu_memory else None,
        }


def run(
    recipe: Recipe, output: Path | None = None, overwrite: bool = False, resume: bool = False
) -> RunOutcome:
    """Train, merge, evaluate with the merged model as an arm, and release a PASS.

    Under FSDP and ZeRO-3, and on GPUs with `evaluation.gpus` above 1, the main process goes on
    alone after the training, and the other processes of the launch end there, with status 0.

    Args:
        recipe: the recipe.
        output: as in `train`.
        overwrite: as in `train`.
        resume: as in `train`; a finished training is not repeated.

    Raises:
        LoraKitError: if a stage refuses its input.
    """
    require_gpus(recipe.evaluation.gpus)
    _say_stage(1)
    trained = train(recipe, output, overwrite, resume)
    if needs_one_process(recipe.evaluation.gpus):
        # A session of a training that was finished before has its model where all processes had.
        trained.close()
        continue_alone()
    free_memory()  # model and optimizer of the training
    session = trained.session
    is_main = process_state().is_main_process
    refusal = why_not_released(session.run, recipe)
    is_merged = not why_not_merged(session.run, recipe)
    _say_stage(2, "" if is_merged else "left out")
    # A release needs the merged model's verdict, whatever arms the recipe names.
    merged = MERGED_ARMS if recipe.merge.base == "both" else MERGED_ARMS[:1]
    if is_main and is_merged:
        merge(session)
    process_state().wait_for_everyone()
    free_memory()
    _say_stage(3)
    verdict = evaluate(session, arms=merged if is_merged else (), work=trained.work).verdict
    released, status = None, VERDICT_STATUS[verdict.decision]
    _say_stage(4, "left out" if refusal else "")
    if is_main and not refusal:
        try:
            made = release(session)
            released = made.directory
            for remark in release_notes(made):
                say(remark)
        except ReleaseError as error:
            refusal, status = str(error), error.status
    main, gpu = peak_memory(), gpu_peak()
    if is_main:
        session.run.update_record(
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            peak_memory=main,
            peak_gpu_memory=asdict(gpu) if gpu else None,
        )
    process_state().wait_for_everyone()
    return RunOutcome(session.run.root, verdict, released, refusal, status, main, gpu)
