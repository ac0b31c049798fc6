"""`rescale`: an adapter's strength, turned without training."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_kit.cli.libraries import load_pipeline
from lora_kit.cli.options import JsonOption, NoCacheOption, OutputOption, RunArgument
from lora_kit.cli.output import is_main_process, print_json, print_text, stdout
from lora_kit.runtime.errors import VERDICT_STATUS, RecipeError


def rescale_command(
    run: RunArgument,
    scales: Annotated[
        str,
        typer.Option(
            metavar="S,S,...",
            help="What lora_B is multiplied by. 1 is the adapter as it was trained, and always "
            "tried; 0 is the base, and always there.",
        ),
    ] = "0.25,0.5,0.75,1,1.25",
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer",
            help="Also turn each third of the decoder blocks (early, middle, late) while the "
            "others stay at 1; there, 0 leaves a third out.",
        ),
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="A suite file or bundled suite; may be repeated; by default the recipe's. One "
            "to gain and one to retain at least."
        ),
    ] = None,
    output: OutputOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the adapter's scale with the largest gain that retention allows, without training.

    Picked on one half of each task's items: of the scales that keep every retention task within
    its margin for sure, the one that gains the most. Proved on the other half, with a verdict like
    `evaluate`'s. Leaves `adapter-rescaled/` (any PEFT loads it), `rescale.json`, `rescale.png` and `rescale/`
    with both halves' reports. LoRA and rsLoRA only. Started again, it goes on where it was.

    Exit status: 0 PASS, 4 INCONCLUSIVE, 3 FAIL, or no scale is shown to gain and keep.
    """
    tried = _numbers(scales)
    found = load_pipeline().rescale(run, tried, by_layer, suite, output, no_cache)
    if as_json:
        print_json(found.to_dict())
    elif is_main_process():
        from lora_kit.rescaling.show import show_rescale

        show_rescale(found, stdout())
        if found.adapter:
            print_text(f"Adapter: {found.adapter[0]}")
            print_text(f"Report: {found.half_b}/report.html")
        print_text(f"Picture: {found.plot}")
    raise typer.Exit(VERDICT_STATUS[found.decision])


def _numbers(text: str) -> tuple[float, ...]:
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError as error:
            raise RecipeError(
                f"--scales: {part.strip()!r} is no number; give numbers with commas between them, "
                "such as 0.25,0.5,1"
            ) from error
    return tuple(found)
