"""`evaluate` and `sequence`: adapters against their base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.libraries import load_pipeline, quiet_libraries
from lora_kit.cli.options import (
    BackboneOption,
    JsonOption,
    NoCacheOption,
    OutputOption,
    QuantizationOption,
)
from lora_kit.cli.output import is_main_process, print_json, print_text, stdout
from lora_kit.recipe.backbone import BackboneSpec, Quantization
from lora_kit.runtime.errors import VERDICT_STATUS, RecipeError


def evaluate_command(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run, or any PEFT adapter directory.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(help="A suite file or bundled suite; may be repeated.")
    ] = None,
    backbone: BackboneOption = None,
    quantization: QuantizationOption = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="What to evaluate besides base and adapter: merged, fewshot, retrieval, scratch, "
            "probe; may be repeated."
        ),
    ] = None,
    output: OutputOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the adapter against its base. Exit status 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
    spec = backbone_spec(backbone, quantization)
    evaluation = load_pipeline().evaluate(target, suite, spec, output, arm or (), no_cache)
    verdict = evaluation.verdict
    if as_json:
        print_json(verdict.to_dict())
    elif is_main_process():
        from lora_kit.evaluation.reporting.show import show_verdict

        show_verdict(verdict, stdout())
        print_text(f"Report: {evaluation.directory}/report.html")
    raise typer.Exit(VERDICT_STATUS[verdict.decision])


def continual_command(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_ADAPTER...", help="Stages in the order of their training."),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help="What each stage was trained for; by default its recipe's gain."),
    ] = None,
    backbone: BackboneOption = None,
    quantization: QuantizationOption = None,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("continual"),
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure adapters that were trained one after the other on the tasks of all of them."""
    spec = backbone_spec(backbone, quantization)
    quiet_libraries()
    from lora_kit.evaluation.reporting.show_stages import show_matrix
    from lora_kit.pipeline.continual import RECORD, evaluate_continual

    found = evaluate_continual(targets, suite, spec, output, no_cache)
    if as_json:
        print_json(found.to_dict())
    elif is_main_process():
        columns = tuple(f"{c.suite}/{c.task} ({c.unit})" for c in found.columns)
        show_matrix(found.stages, columns, found.scores, found.transfers, stdout())
        print_text(f"Matrix: {output / RECORD}")


def backbone_spec(model: str | None, quantization: Quantization | None) -> BackboneSpec | None:
    """What --backbone and --quantization say together; `None` where neither is given."""
    if quantization and not model:
        raise RecipeError("--quantization goes with --backbone; an adapter of ours knows its own")
    # Only what is given is set: the rest is as the adapter says.
    given = {"model": model, "quantization": quantization}
    set_ = {name: value for name, value in given.items() if value}
    return BackboneSpec.model_validate(set_) if set_ else None
