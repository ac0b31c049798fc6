"""`rescale`: change a trained adapter's scale without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from lora_kit.rescaling.intruders import IntruderSearch


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
    intruders: Annotated[
        str | None,
        typer.Option(
            metavar="F,F,...",
            help="Factors to which intruder dimensions are kept, such as 0.75,0.5,0: singular "
            "vectors that the adapter adds to a weight and that resemble none of the base's "
            "(arXiv:2410.21228). 1, as trained, is always tried; 0 takes them out. Each factor is "
            "tried at each of the --scales: three factors and five scales make 20 candidates "
            "instead of 5.",
        ),
    ] = None,
    intruder_top_k: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Largest singular vectors of each weight to search for intruders. Default: 10.",
        ),
    ] = None,
    intruder_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            help="Similarity to the base's singular vectors below which a vector is an intruder; "
            "high values also weaken the base's own directions. Default: 0.5.",
        ),
    ] = None,
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
    factors = _numbers("--scales", scales)
    kept = None if intruders is None else _numbers("--intruders", intruders)
    quiet_libraries()
    from lora_kit.pipeline.rescaling import rescale
    from lora_kit.rescaling.show import show_rescale

    search = _search(kept, intruder_top_k, intruder_threshold)
    result = rescale(run, factors, by_layer, suite, output, no_cache, gpus, search)
    if as_json:
        print_json(result.to_dict())
    elif is_main_process():
        show_rescale(result, stdout())
        if result.rescaled:
            print_text(f"Adapter: {result.output.scaled}")
            print_text(f"Report: {result.output.rescale}/half-b/report.html")
        print_text(f"Plot: {result.output.rescale_plot}")
    raise typer.Exit(VERDICT_STATUS[result.decision])


def _search(
    factors: tuple[float, ...] | None, top_k: int | None, threshold: float | None
) -> IntruderSearch | None:
    from lora_kit.rescaling.intruders import THRESHOLD, TOP_K, IntruderSearch

    if factors is not None:
        return IntruderSearch(
            factors,
            TOP_K if top_k is None else top_k,
            THRESHOLD if threshold is None else threshold,
        )
    for option, given in (("top-k", top_k), ("threshold", threshold)):
        if given is not None:
            raise RecipeError(
                f"--intruder-{option}: has no effect without --intruders (got {given:g}). Fix: add "
                "--intruders 0.75,0.5,0"
            )
    return None


def _numbers(option: str, text: str) -> tuple[float, ...]:
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(float(part))
        except ValueError as error:
            raise RecipeError(
                f"{option}: not a number (got {part.strip()!r}). Fix: write numbers separated by "
                "commas, such as 0.25,0.5,1"
            ) from error
    return tuple(numbers)
