"""`doctor`, `recipes` and `schema`: what this machine and this installation have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import JsonOption
from lora_kit.cli.output import print_json, print_raw, print_text, stdout
from lora_kit.recipe.recipe import Recipe, recipe_names
from lora_kit.recipe.reference import (
    RECIPE_INTRODUCTION,
    SUITE_INTRODUCTION,
    json_schema,
    reference,
)
from lora_kit.runtime.launcher import is_main_process

UNGUARDED_STATUS = 2


def doctor_command(as_json: JsonOption = False) -> None:
    """Check this machine and its libraries: versions, devices, known defects and their guards.

    Exit status: 0 every defect is guarded or absent, 2 one is not.
    """
    quiet_libraries()
    from lora_kit.preflight.doctor import diagnose
    from lora_kit.preflight.show_doctor import show_diagnosis

    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.to_dict())
    elif is_main_process():
        show_diagnosis(diagnosis, stdout())
    raise typer.Exit(0 if diagnosis.healthy else UNGUARDED_STATUS)


def recipes_command() -> None:
    """List the bundled recipes."""
    for name in recipe_names():
        print_text(name)


def schema_command(
    of: Annotated[
        Literal["recipe", "suite"], typer.Argument(metavar="DOCUMENT", help="recipe or suite.")
    ] = "recipe",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a table of all fields instead.")
    ] = False,
) -> None:
    """Print the JSON schema of a recipe or a suite, for editors that complete and check YAML.

    Save it beside your recipe (`lora-kit schema > recipe.schema.json`), and begin the recipe with
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from lora_kit.evaluation.suite import Suite

    if of == "suite":
        print_raw(reference(Suite, SUITE_INTRODUCTION) if markdown else json_schema(Suite))
    else:
        print_raw(reference(Recipe, RECIPE_INTRODUCTION) if markdown else json_schema(Recipe))
