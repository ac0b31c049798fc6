"""`compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import JsonOption
from lora_kit.cli.output import print_json, print_text, stdout
from lora_kit.runtime.errors import RecipeError


def compare_command(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Runs that were evaluated; a sweep's directory stands for its complete trials, "
            "one of several seeds for its seeds.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE.html", help="The page.")] = Path(
        "compare.html"
    ),
    as_json: JsonOption = False,
) -> None:
    """Compare runs of one backbone with each other, item by item; needs no model.

    Differences are paired on the items that two runs share, with Holm's correction over all pairs
    and tasks. A run that was chosen on half A of the items, such as a sweep's winner, is compared
    on half B. The page also has verdicts, recipes and training curves side by side, and the items
    on which the runs differ.
    """
    if output.suffix != ".html":
        raise RecipeError(
            f"--output: the page is a file that ends with .html (got {output}). Fix: rename it"
        )
    quiet_libraries()
    from lora_kit.pipeline.run_comparison import compare_runs
    from lora_kit.selection.comparison.show import show_run_comparison

    found = compare_runs(targets, output)
    if as_json:
        print_json(found.to_dict())
    else:
        show_run_comparison(found, stdout())
        print_text(f"Page: {output}")
