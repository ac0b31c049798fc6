"""`plan`, `train` and `run`: the commands that take a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import (
    JsonOption,
    LaunchOption,
    OutputOption,
    OverwriteOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
)
from lora_kit.cli.output import print_json, print_text, stdout
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.launcher import is_main_process

if TYPE_CHECKING:
    from lora_kit.training.trainer import TrainingResult


def plan_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    launch: LaunchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe without training: rows, memory, time, what is refused, what the suites show.

    Every field of a recipe is explained in recipes/REFERENCE.md (`lora-kit schema --markdown`).
    """
    checked = Recipe.load(recipe, set_ or [])
    quiet_libraries()
    from lora_kit.data.audit.audit import refuse_problems
    from lora_kit.preflight.launch_file import read_launch_file
    from lora_kit.preflight.plan import make_plan
    from lora_kit.preflight.show import show_plan

    plan = make_plan(checked, read_launch_file(launch) if launch else None)
    if as_json:
        print_json(plan.to_dict())
    elif is_main_process():
        show_plan(plan, stdout())
    if plan.on_backbone:
        refuse_problems(plan.on_backbone.audit)


def train_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter; write adapter/, metrics.jsonl and training.png to the run directory."""
    checked = Recipe.load(recipe, set_ or [])
    quiet_libraries()
    from lora_kit.pipeline.training import train

    trained = train(checked, output, overwrite, resume)
    root, result = trained.run.root, trained.result
    if as_json:
        print_json({"run": str(root), **result.to_dict()})
        return
    print_text(
        f"{root}: {result.steps} steps, {result.tokens_per_second:.0f} token/s, loss "
        f"{result.first_loss:.3f} -> {result.final_loss:.3f}{_validation(result)}\n"
        f"Next: lora-kit evaluate {root}"
    )


def _validation(result: TrainingResult) -> str:
    if result.validation_before is None:
        return ""
    drift = "" if result.drift is None else f", drift {result.drift:.3f}"
    losses = f"{result.validation_before:.3f} -> {result.validation_after:.3f}"
    return f", validation loss {losses}{drift}"


def run_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train, merge, evaluate, and release a PASS: all stages in one command.

    Exit status: 0 PASS and released, 3 FAIL, 4 INCONCLUSIVE.
    """
    checked = Recipe.load(recipe, set_ or [])
    quiet_libraries()
    from lora_kit.evaluation.reporting.show import show_verdict
    from lora_kit.pipeline.whole_run import run

    outcome = run(checked, output, overwrite, resume)
    if as_json:
        print_json(outcome.to_dict())
    elif is_main_process():
        show_verdict(outcome.verdict, stdout())
        print_text(f"Report: {outcome.directory}/evaluation/report.html")
        if outcome.release:
            print_text(f"Released: {outcome.release}\nCheck it: lora-kit verify {outcome.release}")
        else:
            print_text(outcome.refusal)
    raise typer.Exit(outcome.status)
