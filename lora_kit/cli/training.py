"""`plan`, `train` and `run`: the commands that take a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

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
from lora_kit.runtime.errors import VERDICT_STATUS, RecipeError
from lora_kit.runtime.launcher import is_main_process

if TYPE_CHECKING:
    from lora_kit.training.trainer import TrainingResult


def plan_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    launch: LaunchOption = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Also say what `lora-kit run --seeds` takes.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe without training: rows, memory, time, what is refused, what the suites show.

    Every field of a recipe is explained in recipes/REFERENCE.md (`lora-kit schema --markdown`).
    """
    checked = Recipe.load(recipe, set_ or [])
    quiet_libraries()
    from lora_kit.data.audit.audit import refuse_problems
    from lora_kit.pipeline.sweep import SweepRequest
    from lora_kit.preflight.launch_file import read_launch_file
    from lora_kit.preflight.make_plan import make_plan
    from lora_kit.preflight.show import show_plan
    from lora_kit.selection.sweep.space import search_space

    if checked.sweep is not None:
        search_space(checked.sweep.over, SweepRequest(recipe, set_ or []).recipe)
    plan = make_plan(checked, read_launch_file(launch) if launch else None)
    plan = replace(plan, seeds=seeds)
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
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Train and judge the recipe with so many seeds, which gives an interval of the "
            "recipe, and release the adapter that is best on half of the items, by the other half; "
            "the exit status is that of this adapter.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train, merge, evaluate, and release a PASS: all stages in one command.

    Exit status: 0 PASS and released, 3 FAIL, 4 INCONCLUSIVE.
    """
    checked = Recipe.load(recipe, set_ or [])
    quiet_libraries()
    if checked.data.cross_validation is not None:
        _cross_validate(checked, seeds, output, overwrite, as_json)
    if seeds is not None:
        _run_seeds(checked, seeds, output, overwrite, as_json)
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


def _cross_validate(
    recipe: Recipe, seeds: int | None, output: Path | None, overwrite: bool, as_json: bool
) -> NoReturn:
    """Train and judge the folds, print the verdict on the recipe, and exit."""
    from lora_kit.pipeline.cross_validation import cross_validate
    from lora_kit.selection.folds import show_folds_verdict

    option = "--overwrite" if overwrite else "--seeds" if seeds is not None else ""
    if option:
        raise RecipeError(
            f"{option}: folds use what exists, with one seed (got data.cross_validation "
            f"{recipe.data.cross_validation} as well). Fix: remove one of the two"
        )
    verdict = cross_validate(recipe, output)
    if as_json:
        print_json(verdict.to_dict())
    else:
        show_folds_verdict(verdict, stdout())
        print_text(
            f"Record: {verdict.directory}/folds.json\n"
            "Next, an adapter of all rows: lora-kit run RECIPE --set data.cross_validation=null"
        )
    raise typer.Exit(VERDICT_STATUS[verdict.decision])


def _run_seeds(
    recipe: Recipe, seeds: int, output: Path | None, overwrite: bool, as_json: bool
) -> NoReturn:
    """Run several seeds, print the verdicts on recipe and adapter, and exit."""
    from lora_kit.evaluation.reporting.show import show_verdict
    from lora_kit.pipeline.seeds import run_seeds
    from lora_kit.selection.show_seeds import show_recipe_verdict

    if overwrite:
        raise RecipeError(
            "--overwrite: several seeds use what exists (got --seeds as well). Fix: remove one of "
            "the two, or name another --output"
        )
    outcome = run_seeds(recipe, seeds, output)
    if as_json:
        print_json(outcome.to_dict())
    else:
        show_recipe_verdict(outcome.recipe, stdout())
        print_text(f"\nSeed {outcome.recipe.ships} ships; half B, unseen when it was chosen")
        show_verdict(outcome.shipped, stdout())
        print_text(f"Report: {outcome.run}/evaluation/report.html")
        print_text(f"Released: {outcome.release}" if outcome.release else outcome.refusal)
    raise typer.Exit(outcome.status)
