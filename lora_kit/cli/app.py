"""The commands of `lora-kit`, in the order in which `--help` lists them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lora_kit.cli.alone import alone
from lora_kit.cli.comparing import compare_command
from lora_kit.cli.evaluating import continual_command, evaluate_command, verdict_command
from lora_kit.cli.labelling import select_command
from lora_kit.cli.machine import doctor_command, recipes_command, schema_command
from lora_kit.cli.merging import combine_command, export_command, merge_command
from lora_kit.cli.monitoring import monitor_command
from lora_kit.cli.output import release_stdout
from lora_kit.cli.releasing import release_command, verify_command
from lora_kit.cli.rescaling import rescale_command
from lora_kit.cli.selection import compare_backbones_command
from lora_kit.cli.sweeping import sweep_command
from lora_kit.cli.training import plan_command, run_command, train_command
from lora_kit.runtime.console import DEBUG_VARIABLE

app = typer.Typer(
    name="lora-kit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Start with `lora-kit run quickstart`. Exit status: 0 done or PASS, 1 an error of "
    "lora-kit, 2 bad usage or refused input, 3 FAIL or a failed check, 4 INCONCLUSIVE, 75 stopped "
    "by SIGTERM or SIGUSR1 with a checkpoint (continue with --resume), 130 stopped by Ctrl-C, "
    "141 nobody reads the output.",
    help="Adapt a frozen language model with a recipe, prove what the adapter gained and what it "
    "forgot against the base, and release only what passes.",
)


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Show messages of all processes and libraries, and tracebacks of errors.",
        ),
    ] = False,
) -> None:
    """Set options that hold for every command."""
    context.call_on_close(release_stdout)
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


# Registered in the order in which --help lists them.
app.command("plan")(plan_command)
app.command("compare-backbones")(alone(compare_backbones_command))
app.command("sweep")(sweep_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("verdict")(alone(verdict_command))
app.command("select")(alone(select_command))
app.command("rescale")(rescale_command)
app.command("continual")(continual_command)
app.command("compare")(alone(compare_command))
app.command("merge")(alone(merge_command))
app.command("combine")(alone(combine_command))
app.command("export")(alone(export_command))
app.command("release")(alone(release_command))
app.command("verify")(alone(verify_command))
app.command("monitor")(alone(monitor_command))
app.command("run")(run_command)
app.command("doctor")(alone(doctor_command))
app.command("recipes")(recipes_command)
app.command("schema")(schema_command)
