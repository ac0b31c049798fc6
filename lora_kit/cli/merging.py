"""`merge`, `combine` and `export`: from adapters to models, and to other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.evaluating import backbone_spec
from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import (
    AdapterArgument,
    BackboneOption,
    GpusOption,
    JsonOption,
    LlamaCppOption,
    OutputOption,
    QuantizationOption,
)
from lora_kit.cli.output import print_json, print_text
from lora_kit.merging.combining.methods import CombinationMethod
from lora_kit.merging.exporting.formats import ExportFormat, GgufFileType
from lora_kit.recipe.backbone import DType
from lora_kit.recipe.sections import MergeBase
from lora_kit.runtime.errors import VERDICT_STATUS


def merge_command(
    target: AdapterArgument,
    output: OutputOption = None,
    backbone: BackboneOption = None,
    quantization: QuantizationOption = None,
    base: Annotated[
        MergeBase | None,
        typer.Option(
            help="Weights that the adapter is added to: those it was trained on (dequantized), the "
            "checkpoint's (original), or both; by default as the recipe says, or dequantized."
        ),
    ] = None,
    dtype: Annotated[
        DType | None,
        typer.Option(help="Dtype of the merged weights; by default as the recipe says, or auto."),
    ] = None,
    gpus: GpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its backbone, tensor by tensor, and verify the result.

    Exit status: 0 verified, 3 the merged files do not compute what base and adapter compute.
    """
    spec = backbone_spec(backbone, quantization)
    quiet_libraries()
    from lora_kit.pipeline.merging import merge

    results = merge(target, output, spec, base, dtype, gpus)
    if as_json:
        print_json({"merged": [merged.to_dict() for merged in results]})
    else:
        for merged in results:
            print_text(f"Merged: {merged.directory}")
            for reason in merged.verification.reasons:
                print_text(f"  NOT verified: {reason}")
        if output is None:
            arms = " ".join(f"--arm {merged.directory.name}" for merged in results)
            print_text(f"Next: lora-kit evaluate {target} {arms}")
    passed = all(merged.verification.passed for merged in results)
    raise typer.Exit(0 if passed else VERDICT_STATUS["FAIL"])


def combine_command(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="Runs or adapter directories of one backbone."),
    ],
    output: Annotated[Path, typer.Option(help="Directory of the combined adapter.")],
    method: Annotated[
        CombinationMethod,
        typer.Option(
            help="linear: the exact weighted sum; its rank is the sum of the ranks. svd: the best "
            "approximation of that at a rank. ties, dare_linear, dare_ties: drop values on which "
            "the adapters disagree, or random ones, at a rank."
        ),
    ] = "linear",
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of each adapter, in their order; by default 1/n."),
    ] = None,
    weigh_by_examples: Annotated[
        bool,
        typer.Option("--weigh-by-examples", help="Weigh by the examples that each was trained on."),
    ] = False,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the result; by default the adapters' largest.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Share of values that ties (0.2) and dare_* (0.5) keep."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the values that dare_* drops; by default 0.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Combine adapters of the same backbone into one, from their files alone."""
    quiet_libraries()
    from lora_kit.merging.combining.combine import CombinationOptions, combine
    from lora_kit.merging.combining.show import describe_combination

    options = CombinationOptions(
        method, tuple(weight or ()), weigh_by_examples, rank, density, seed
    )
    result = combine(adapters, options, output)
    if as_json:
        print_json({"adapter": str(output), **result.to_dict()})
    else:
        print_text(f"{describe_combination(result)}\nNext: lora-kit evaluate {output}")


def export_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A merged model.")],
    to: Annotated[ExportFormat, typer.Option(help="gguf (a file), nf4 or int8 (a directory).")],
    output: Annotated[Path, typer.Option(help="File or directory of the result.")],
    type_: Annotated[
        GgufFileType | None,
        typer.Option(
            "--type",
            help="GGUF type of matrices: f16 (default), bf16, f32, q8_0; by llama.cpp's own "
            "program, q4_k_m, q5_k_m, q6_k.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="File with one text per line to compare on; by default prose."),
    ] = None,
    llama_cpp: LlamaCppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a merged model as a GGUF file, or as a directory in nf4 or int8; reload and compare it.

    A Modelfile for Ollama is written beside a GGUF file. Models other than those of the Llama
    family are written by llama.cpp's converter, if --llama-cpp names a checkout of llama.cpp.

    Exit status: 0 close enough, 3 too far from the merged model.
    """
    quiet_libraries()
    from lora_kit.merging.exporting.export import export
    from lora_kit.merging.exporting.show import describe_export, read_comparison_texts

    compared = read_comparison_texts(texts) if texts else ()
    result = export(directory, to, output, type_, compared, llama_cpp)
    if as_json:
        print_json({"export": str(output), **result.to_dict()})
    else:
        print_text(describe_export(result))
    raise typer.Exit(0 if result.passed else VERDICT_STATUS["FAIL"])
