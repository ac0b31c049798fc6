"""The commands under one name, in the order in which `--help` lists them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lora_kit.cli.alone import alone
from lora_kit.cli.dialling import dial
from lora_kit.cli.evaluating import evaluate, sequence
from lora_kit.cli.machine import doctor, recipes
from lora_kit.cli.merging import combine, export, merge
from lora_kit.cli.releasing import release, verify
from lora_kit.cli.scouting import scout
from lora_kit.cli.training import plan, run, train
from lora_kit.console import DEBUG

app = typer.Typer(
    name="lora-kit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Start with `lora-kit run quickstart`. Exit status: 0 done or PASS, 1 an error of "
    "lora-kit, 2 bad usage or refused input, 3 FAIL, 4 INCONCLUSIVE, 75 "
    "broken off by a signal, go on with --resume.",
    help="Adapt a frozen language model with a recipe, prove what the adapter gained and what it "
    "forgot against the base, and release only what passes.",
)


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Messages of all processes and libraries; errors with their traceback."
        ),
    ] = False,
) -> None:
    """Before the command."""
    if debug:
        os.environ[DEBUG] = "1"


# Told in full, since the order of --help is not that of the imports above.
app.command()(plan)
app.command()(alone(scout))
app.command()(train)
app.command()(evaluate)
app.command()(dial)
app.command()(sequence)
app.command()(alone(merge))
app.command()(alone(combine))
app.command()(alone(export))
app.command()(alone(release))
app.command()(alone(verify))
app.command()(run)
app.command()(alone(doctor))
app.command()(recipes)
