"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.recipe.backbone import Quantization
from lora_kit.recipe.sections import EngineName, StoppingName

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe.")
]
AdapterArgument = Annotated[
    Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run, or any PEFT adapter directory.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a field, such as training.epochs=2; may be repeated. All fields: "
        "`lora-kit schema --markdown`.",
    ),
]
LaunchOption = Annotated[
    Path | None,
    typer.Option(
        "--launch",
        metavar="FILE",
        help="Plan for `accelerate launch --config_file FILE`, on any machine: memory of each "
        "process, and what cannot work.",
    ),
]
SuiteOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A suite file or bundled suite; may be repeated. Default: the suites of the recipe."
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="Directory of the results; by default runs/NAME for a recipe, else one in the run.",
    ),
]
LlamaCppOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of llama.cpp's programs, for GGUF files; by default they are on the PATH.",
    ),
]
EngineOption = Annotated[
    EngineName | None,
    typer.Option(
        help="Program that answers for base, adapter and merged models; by default "
        "evaluation.engine of the recipe, or transformers."
    ),
]
VllmOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the Python environment that has vLLM; by default this one, or that of "
        "`vllm` on the PATH.",
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Allow --output to hold an earlier run.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --output (by default the newest run of the recipe) from its last "
        "checkpoint; start a new run if there is none.",
    ),
]
NoCacheOption = Annotated[
    bool, typer.Option("--no-cache", help="Ignore results that were measured before.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BackboneOption = Annotated[
    str | None,
    typer.Option(help="Location of an adapter's base model; by default the one it names."),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="GPUs over which the model's blocks are spread; by default evaluation.gpus of the "
        "recipe, or 1.",
    ),
]
StoppingOption = Annotated[
    StoppingName | None,
    typer.Option(
        help="Ask each task's items until it is decided (sequential), or all of them (none); by "
        "default evaluation.stopping of the recipe, or sequential."
    ),
]
QuantizationOption = Annotated[
    Quantization | None,
    typer.Option(
        help="Quantization of the base, with --backbone; by default the adapter's own, or none."
    ),
]
