"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.recipe.backbone import Quantization

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Override a field, such as training.epochs=2."
    ),
]
LaunchOption = Annotated[
    Path | None,
    typer.Option(
        "--launch",
        metavar="FILE",
        help="Plan for what `accelerate launch --config_file FILE` would start, on any machine: "
        "memory of each process, and what cannot work.",
    ),
]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Where the results go.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Let --output hold an earlier run.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in --output (by default the newest of the recipe) from its last "
        "checkpoint; without one, begin.",
    ),
]
NoCacheOption = Annotated[
    bool, typer.Option("--no-cache", help="Measure again what was measured before.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
BackboneOption = Annotated[
    str | None,
    typer.Option(help="Where an adapter's base model is now; by default where the adapter says."),
]
QuantizationOption = Annotated[
    Quantization | None,
    typer.Option(
        help="With --backbone: how the base is stored; by default as the adapter says, or none."
    ),
]
