"""`merge`, `combine` and `export`: from adapters to models, and to other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.evaluating import backbone_spec
from lora_kit.cli.libraries import load_pipeline, quiet_libraries
from lora_kit.cli.options import BackboneOption, JsonOption, OutputOption, QuantizationOption
from lora_kit.cli.output import print_json, print_text
from lora_kit.merging.combining.methods import CombinationMethod
from lora_kit.merging.exporting.formats import ExportFormat, GgufType
from lora_kit.recipe.backbone import DType
from lora_kit.recipe.sections import MergeBase
from lora_kit.runtime.errors import VERDICT_STATUS


def merge_command(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run, or any PEFT adapter directory.")
    ],
    output: OutputOption = None,
    backbone: BackboneOption = None,
    quantization: QuantizationOption = None,
    base: Annotated[
        MergeBase | None,
        typer.Option(
            help="What the adapter is added to: the weights that it was trained on (dequantized), "
            "the checkpoint's (original), or both; by default as the recipe says, or dequantized."
        ),
    ] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="What is stored; by default as the recipe says, or auto.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its backbone, tensor by tensor, and ask both the same. Exit status 3:
    the files are not what was measured."""
    spec = backbone_spec(backbone, quantization)
    found = load_pipeline().merge(target, output, spec, base, dtype)
    if as_json:
        print_json({"merged": [merged.to_dict() for merged in found]})
    else:
        for merged in found:
            print_text(f"Merged: {merged.directory}")
            for reason in merged.verification.reasons:
                print_text(f"  NOT what was measured: {reason}")
        if output is None:
            arms = " ".join(f"--arm {merged.directory.name}" for merged in found)
            print_text(f"Next: lora-kit evaluate {target} {arms}")
    passed = all(merged.verification.passed for merged in found)
    raise typer.Exit(0 if passed else VERDICT_STATUS["FAIL"])


def combine_command(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="Runs or adapter directories of one backbone."),
    ],
    output: Annotated[Path, typer.Option(help="Where the combined adapter goes.")],
    method: Annotated[
        CombinationMethod,
        typer.Option(
            help="linear: the exact weighted sum, of a rank that is the sum of the ranks. svd: its "
            "best approximation at a rank. ties, dare_linear, dare_ties: without what the adapters "
            "disagree on or what is drawn by lot, at a rank."
        ),
    ] = "linear",
    weight: Annotated[
        list[float] | None,
        typer.Option(help="One for each adapter, in their order, used as given; by default 1/n."),
    ] = None,
    weigh_by_examples: Annotated[
        bool,
        typer.Option("--weigh-by-examples", help="By the examples that each was trained on."),
    ] = False,
    rank: Annotated[
        int | None, typer.Option(help="Of the result; by default the adapters' largest.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Share of values that ties (0.2) and dare_* (0.5) keep."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of what dare_* drops; by default 0.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Combine adapters of the same backbone into one, from their files alone."""
    quiet_libraries()
    from lora_kit.merging.combining.combine import Combination
    from lora_kit.merging.combining.combine import combine as combine_adapters
    from lora_kit.merging.combining.show import described

    how = Combination(method, tuple(weight or ()), weigh_by_examples, rank, density, seed)
    result = combine_adapters(adapters, how, output)
    if as_json:
        print_json({"adapter": str(output), **result.to_dict()})
    else:
        print_text(f"{described(result)}\nNext: lora-kit evaluate {output}")


def export_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A merged model.")],
    to: Annotated[ExportFormat, typer.Option(help="gguf (a file), nf4 or int8 (a directory).")],
    output: Annotated[Path, typer.Option(help="Where it goes.")],
    type_: Annotated[
        GgufType | None,
        typer.Option("--type", help="Of a GGUF file's matrices: f16 (default), bf16, f32, q8_0."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="A file with a text on each line to compare on; by default prose."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a merged model as GGUF, 4 or 8 bit, read it back and compare. Status 3: too far off."""
    quiet_libraries()
    from lora_kit.merging.exporting.export import export as export_model
    from lora_kit.merging.exporting.show import described, read_texts

    result = export_model(directory, to, output, type_, read_texts(texts) if texts else ())
    if as_json:
        print_json({"export": str(output), **result.to_dict()})
    else:
        print_text(described(result))
    raise typer.Exit(0 if result.passed else VERDICT_STATUS["FAIL"])
