"""`plan`, `train` and `run`: the commands that begin with a recipe."""

from __future__ import annotations

from typing import Any

import typer

from lora_kit.cli.libraries import load_pipeline, quiet_libraries
from lora_kit.cli.options import (
    JsonOption,
    LaunchOption,
    OutputOption,
    OverwriteOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
)
from lora_kit.cli.output import is_main_process, print_json, print_text, stdout
from lora_kit.recipe.recipe import Recipe


def plan_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    launch: LaunchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything but the training: what it would do, take and refuse, and what the suites show."""
    checked = Recipe.load(recipe, set_ or [])
    quiet_libraries()
    from lora_kit.preflight.launch_file import read_launch_file
    from lora_kit.preflight.plan import make_plan
    from lora_kit.preflight.show import show_plan

    made = make_plan(checked, read_launch_file(launch) if launch else None)
    if as_json:
        print_json(made.to_dict())
    elif is_main_process():
        show_plan(made, stdout())
    if made.audit:
        from lora_kit.data.audit.audit import refuse

        refuse(made.audit)


def train_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter. Leaves adapter/, metrics.jsonl and training.png in the run directory."""
    checked = Recipe.load(recipe, set_ or [])
    trained = load_pipeline().train(checked, output, overwrite, resume)
    root, result = trained.run.root, trained.result
    if as_json:
        print_json({"run": str(root), **result.to_dict()})
        return
    print_text(
        f"{root}: {result.steps} steps, {result.tokens_per_second:.0f} token/s, loss "
        f"{result.first_loss:.3f} -> {result.final_loss:.3f}{_validation(result)}\n"
        f"Next: lora-kit evaluate {root}"
    )


def _validation(result: Any) -> str:
    if result.validation_before is None:
        return ""
    return f", held-out {result.validation_before:.3f} -> {result.validation_after:.3f}"


def run_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Recipe to release in one: train, evaluate, merge, and release what passes."""
    checked = Recipe.load(recipe, set_ or [])
    pipeline = load_pipeline()
    from lora_kit.evaluation.reporting.show import show_verdict

    outcome = pipeline.run(checked, output, overwrite, resume)
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
