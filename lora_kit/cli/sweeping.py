"""`sweep`: find the recipe, and prove it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import JsonOption, RecipeArgument, SetOption
from lora_kit.cli.output import print_json, print_text, stdout
from lora_kit.recipe.sweep import PrunerName, SamplerName
from lora_kit.runtime.errors import VERDICT_STATUS, RecipeError


def sweep_command(
    recipe: RecipeArgument,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUES",
            help="Field to search, and its values: a range such as "
            "training.learning_rate=1e-4..1e-3:log, or a list such as adapter.rank=8,16,32; may be "
            "repeated.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=2, help="Number of trials, the recipe as it is included.  [default: 20]"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Adapters of a trial.  [default: 1]")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Time of all trials together, over all workers, such as 2h."
        ),
    ] = None,
    sampler: Annotated[
        SamplerName | None, typer.Option(help="Optuna's sampler.  [default: tpe]")
    ] = None,
    pruner: Annotated[
        PrunerName | None,
        typer.Option(help="Optuna's pruner, by validation loss.  [default: median]"),
    ] = None,
    worker: Annotated[
        bool,
        typer.Option(
            "--worker",
            help="Make trials of a sweep that another process has begun and proves; with the same "
            "recipe, options and --output, on any machine that shares the disk.",
        ),
    ] = False,
    set_: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Directory of the sweep.  [default: sweeps/NAME]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search for values of a recipe's fields, and prove the best on items that no trial saw.

    Each trial is trained, given up early where its validation loss or few items are hopeless, and
    judged on half A of the suites' items. Of those that keep every retention task within its
    margin, the one that gains most wins; the recipe as it is always is a trial. Half B gives the
    verdict on the winner, and its lead over the recipe as it is. Writes `winner.yaml`,
    `sweep.html`, `sweep.json` and all run directories. If killed, it continues where it was.

    Needs Optuna: pip install 'lora-kit\\[sweep]'. Exit status: 0 PASS, 4 INCONCLUSIVE, 3 FAIL, or
    no trial gains within every margin.
    """
    given = {"trials": trials, "seeds": seeds, "budget": budget}
    given |= {"sampler": sampler, "pruner": pruner}
    # JSON is YAML, in which a budget such as 2 stays a text.
    stated = {name: value for name, value in given.items() if value is not None}
    changes = [f"sweep.{name}={json.dumps(value)}" for name, value in stated.items()]
    quiet_libraries()
    from lora_kit.pipeline.sweep import SweepRequest, sweep
    from lora_kit.selection.sweep.show import show_sweep

    searched: dict[str, str] = {}
    for field, values in map(_parts, over or ()):
        if field in searched:
            raise RecipeError(
                f"--over: {field} has values twice (got {searched[field]} and {values}). Fix: name "
                "it once, with all of its values"
            )
        searched[field] = values
    result = sweep(SweepRequest(recipe, set_ or [], searched, changes, output, worker))
    if result is None:
        if as_json:
            print_json({"is_worker": True})
        else:
            print_text("No trial is left to make. The process without --worker proves the winner.")
        return
    if as_json:
        print_json(result.to_dict())
    else:
        show_sweep(result, stdout())
        print_text(f"Page: {result.directory}/sweep.html")
    raise typer.Exit(VERDICT_STATUS[result.decision])


def _parts(text: str) -> tuple[str, str]:
    field, separator, values = text.partition("=")
    if not separator or not field.strip() or not values.strip():
        raise RecipeError(
            f"--over: not a field with values (got {text}). Fix: write it as "
            "training.learning_rate=1e-4..1e-3:log or adapter.rank=8,16,32"
        )
    return field.strip(), values.strip()
