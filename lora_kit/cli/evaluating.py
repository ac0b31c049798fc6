"""`evaluate`, `verdict` and `continual`: adapters against their base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import (
    AdapterArgument,
    BackboneOption,
    EngineOption,
    GpusOption,
    JsonOption,
    LlamaCppOption,
    NoCacheOption,
    OutputOption,
    QuantizationOption,
    StoppingOption,
    SuiteOption,
    VllmOption,
)
from lora_kit.cli.output import print_json, print_text, stdout
from lora_kit.recipe.backbone import BackboneSpec, Quantization
from lora_kit.runtime.errors import VERDICT_STATUS, RecipeError
from lora_kit.runtime.launcher import is_main_process

if TYPE_CHECKING:
    from lora_kit.evaluation.harness import Evaluation


def evaluate_command(
    target: AdapterArgument,
    suite: SuiteOption = None,
    backbone: BackboneOption = None,
    quantization: QuantizationOption = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="Arm besides base and adapter: merged, merged-original, nf4, int8, fewshot, "
            "retrieval, scratch, probe, an exported file, gguf=FILE, its control, the base in the "
            "same file type, base-gguf=FILE, or a model of a server, served=URL; may be repeated."
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the model at served=URL; by default its only one."
        ),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help="Environment variable that holds the key of served=URL; the key is not stored.",
        ),
    ] = None,
    engine: EngineOption = None,
    vllm: VllmOption = None,
    llama_cpp: LlamaCppOption = None,
    gpus: GpusOption = None,
    stopping: StoppingOption = None,
    thinking: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="TOKENS",
            help="Let the model think for up to so many tokens before it generates an answer; 0: "
            "without a thought. Default: evaluation.thinking of the recipe, or 0.",
        ),
    ] = None,
    output: OutputOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure an adapter against its base on suites of tasks.

    Exit status: 0 PASS, 3 FAIL, 4 INCONCLUSIVE.
    """
    spec = backbone_spec(backbone, quantization)
    quiet_libraries()
    from lora_kit.pipeline.evaluation import evaluate
    from lora_kit.pipeline.shipped_arms import Programs

    evaluation = evaluate(
        target,
        suite,
        spec,
        output,
        arm or (),
        no_cache,
        gpus=gpus,
        stopping=stopping,
        programs=Programs(engine, vllm, llama_cpp, served_model, api_key_env),
        thinking=thinking,
    )
    _show(evaluation, as_json)


def verdict_command(
    base: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Results of the base: samples of lm-eval (--log_samples) or their folder, a log "
            "of Inspect, or rows of `id` and `score` (JSON lines, JSON, CSV, Parquet).",
        ),
    ],
    adapter: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Results of the adapter on the same items."),
    ],
    margin: Annotated[
        float | None,
        typer.Option(
            help="Largest tolerated loss, in the unit of the score: judge retention. Default: "
            "judge a gain."
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(help="Level of the test: one-sided with --margin, else two-sided."),
    ] = 0.05,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Score: a metric of lm-eval (METRIC or METRIC,FILTER), a scorer of Inspect "
            "(SCORER or SCORER/KEY), or a column of the rows. Default: the first one, or `score`."
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Field whose value is shared by items that are not independent, such as a "
            "document: of the rows, of lm-eval's documents, or of Inspect's metadata.",
        ),
    ] = None,
    lower_is_better: Annotated[
        bool,
        typer.Option(
            "--lower-is-better", help="A lower score is better, where the files do not say it."
        ),
    ] = False,
    output: Annotated[Path, typer.Option(help="Directory of ledger, verdict and report.")] = Path(
        "verdict"
    ),
    as_json: JsonOption = False,
) -> None:
    """Judge results that another program measured, item by item; needs no model.

    Exit status: 0 PASS, 3 FAIL, 4 INCONCLUSIVE.
    """
    quiet_libraries()
    from lora_kit.evaluation.imported.result import Columns
    from lora_kit.pipeline.imported_verdict import judge_results

    evaluation = judge_results(
        base, adapter, output, margin, alpha, Columns(metric, cluster), lower_is_better
    )
    _show(evaluation, as_json)


def _show(evaluation: Evaluation, as_json: bool) -> NoReturn:
    """Print a verdict and where its report is, and exit with its status."""
    from lora_kit.evaluation.agreement import agreement_sentences
    from lora_kit.evaluation.reporting.show import show_verdict

    verdict = evaluation.verdict
    if as_json:
        print_json(verdict.to_dict())
    elif is_main_process():
        show_verdict(verdict, stdout())
        for sentence in agreement_sentences(evaluation.agreement):
            print_text(f"{sentence}.")
        print_text(f"Report: {evaluation.directory}/report.html")
    raise typer.Exit(VERDICT_STATUS[verdict.decision])


def continual_command(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_ADAPTER...", help="Stages in the order of their training."),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="Suite that each stage was trained for; by default the gain suites of its recipe."
        ),
    ] = None,
    backbone: BackboneOption = None,
    quantization: QuantizationOption = None,
    output: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("continual"),
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure adapters that were trained one after the other on the tasks of all of them."""
    spec = backbone_spec(backbone, quantization)
    quiet_libraries()
    from lora_kit.evaluation.reporting.show_continual import show_matrix
    from lora_kit.pipeline.continual import RECORD, evaluate_continual

    result = evaluate_continual(targets, suite, spec, output, no_cache)
    if as_json:
        print_json(result.to_dict())
    elif is_main_process():
        columns = tuple(f"{c.suite}/{c.task} ({c.unit})" for c in result.columns)
        show_matrix(result.stages, columns, result.scores, result.transfers, stdout())
        print_text(f"Matrix: {output / RECORD}")


def backbone_spec(model: str | None, quantization: Quantization | None) -> BackboneSpec | None:
    """Return the backbone of --backbone and --quantization; `None` if neither is given."""
    if quantization and not model:
        raise RecipeError(
            "--quantization: has no effect alone, since an adapter of ours records its own. Fix: "
            "add --backbone"
        )
    # Only given fields are set: the adapter decides the rest.
    given = {"model": model, "quantization": quantization}
    chosen = {name: value for name, value in given.items() if value}
    return BackboneSpec.model_validate(chosen) if chosen else None
