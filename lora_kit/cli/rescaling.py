"""`rescale`: change a trained adapter's scale without training."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import (
    GpusOption,
    JsonOption,
    NoCacheOption,
    OutputOption,
    RunArgument,
    SuiteOption,
)
from lora_kit.cli.output import print_json, print_text, stdout
from lora_kit.runtime.errors import VERDICT_STATUS, RecipeError
from lora_kit.runtime.launcher import is_main_process


def rescale_command(
    run: RunArgument,
    scales: Annotated[
        str,
        typer.Option(
            metavar="S,S,...",
            help="Factors of lora_B. 1, the adapter as it was trained, is always tried; 0 is the "
            "base, which is always evaluated.",
        ),
    ] = "0.25,0.5,0.75,1,1.25",
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer",
            help="Also rescale each third of the decoder blocks (early, middle, late) while the "
            "others stay at 1; there, 0 removes a third.",
        ),
    ] = False,
    suite: SuiteOption = None,
    output: OutputOption = None,
    no_cache: NoCacheOption = False,
    gpus: GpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the adapter's scale with the largest gain that retention allows, without training.

    The scale is chosen on one half of each task's items: among those that keep every retention task
    within its margin, the one that gains most. The other half gives the verdict. Writes
    `adapter-rescaled/` (any PEFT loads it), `rescale.json`, `rescale.png`, and `rescale/` with both
    halves' reports. For LoRA and rsLoRA. If interrupted, it continues where it was.

    Exit status: 0 PASS, 4 INCONCLUSIVE, 3 FAIL, or no scale gains within every margin.
    """
    factors = _numbers(scales)
    quiet_libraries()
    from lora_kit.pipeline.rescaling import rescale
    from lora_kit.rescaling.show import show_rescale

    result = rescale(run, factors, by_layer, suite, output, no_cache, gpus)
    if as_json:
        print_json(result.to_dict())
    elif is_main_process():
        show_rescale(result, stdout())
        if result.rescaled:
            print_text(f"Adapter: {result.output.scaled}")
            print_text(f"Report: {result.output.rescale}/half-b/report.html")
        print_text(f"Plot: {result.output.rescale_plot}")
    raise typer.Exit(VERDICT_STATUS[result.decision])


def _numbers(text: str) -> tuple[float, ...]:
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(float(part))
        except ValueError as error:
            raise RecipeError(
                f"--scales: not a number (got {part.strip()!r}). Fix: write numbers separated by "
                "commas, such as 0.25,0.5,1"
            ) from error
    return tuple(numbers)
