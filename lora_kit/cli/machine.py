"""`doctor` and `recipes`: what this machine and this installation have."""

from __future__ import annotations

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import JsonOption
from lora_kit.cli.output import is_main_process, print_json, print_text, stdout
from lora_kit.recipe.recipe import recipe_names

UNGUARDED_STATUS = 2


def doctor_command(as_json: JsonOption = False) -> None:
    """This machine and this stack: versions, devices, known traps. Exit status 2: one unguarded."""
    quiet_libraries()
    from lora_kit.preflight.doctor import examine
    from lora_kit.preflight.show_doctor import show_diagnosis

    diagnosis = examine()
    if as_json:
        print_json(diagnosis.to_dict())
    elif is_main_process():
        show_diagnosis(diagnosis, stdout())
    raise typer.Exit(0 if diagnosis.healthy else UNGUARDED_STATUS)


def recipes_command() -> None:
    """List the bundled recipes."""
    for name in recipe_names():
        print_text(name)
