"""The commands: parse, call, print. Exit status: 0 done or PASS, 1 an error of ours, 2 bad usage or
refused input, 3 FAIL, 4 INCONCLUSIVE."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from lora_kit.errors import LoraKitError, RecipeError, ReleaseError
from lora_kit.merging.combining import Method
from lora_kit.merging.exporting import GgufType, Target
from lora_kit.recipe import BackboneSpec, Quantization, Recipe, recipe_names

app = typer.Typer(
    name="lora-kit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Start with `lora-kit run quickstart`. Exit status: 0 done or PASS, 1 an error of "
    "lora-kit, 2 bad usage or refused input, 3 FAIL, 4 INCONCLUSIVE.",
    help="Adapt a frozen language model with a recipe, prove what the adapter gained and what it "
    "forgot against the base, and release only what passes.",
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Override a field, such as training.epochs=2."
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
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Measure again what was measured before.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]

# A full disk, a quota, a limit of file sizes, a folder that is not ours.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
VERDICT_STATUS = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
UNGUARDED_STATUS = 2


@app.command()
def plan(recipe: RecipeArgument, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Everything but the training: what it would do, take and refuse, and what the suites show."""
    checked = Recipe.load(recipe, set_ or [])
    _quiet_libraries()
    from lora_kit.preflight.plan import make_plan
    from lora_kit.preflight.show import show_plan

    made = make_plan(checked)
    if as_json:
        _print_json(made.to_dict())
    elif _is_main_process():
        show_plan(made, _stdout())
    if made.audit:
        from lora_kit.data.audit.audit import refuse

        refuse(made.audit)


@app.command()
def train(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter. Leaves adapter/, metrics.jsonl and training.png in the run directory."""
    checked = Recipe.load(recipe, set_ or [])
    trained = _pipeline().train(checked, output, overwrite, resume)
    root, result = trained.session.run.root, trained.result
    if as_json:
        _print_json({"run": str(root), **result.to_dict()})
        return
    _print(
        f"{root}: {result.steps} steps, {result.tokens_per_second:.0f} token/s, loss "
        f"{result.first_loss:.3f} -> {result.final_loss:.3f}{_validation(result)}\n"
        f"Next: lora-kit evaluate {root}"
    )


def _validation(result: Any) -> str:
    if result.validation_before is None:
        return ""
    return f", held-out {result.validation_before:.3f} -> {result.validation_after:.3f}"


@app.command()
def evaluate(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run, or any PEFT adapter directory.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(help="A suite file or bundled suite; may be repeated.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Base model of an adapter that another tool made."),
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="With --backbone: how the base is stored.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="What to evaluate besides base and adapter: merged, fewshot, retrieval, scratch; "
            "may be repeated."
        ),
    ] = None,
    output: OutputOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the adapter against its base. Exit status 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
    pipeline = _pipeline()

    spec = _backbone(backbone, quantization)
    evaluation = pipeline.evaluate(target, suite, spec, output, arm or (), fresh)
    verdict = evaluation.verdict
    if as_json:
        _print_json(verdict.to_dict())
    elif _is_main_process():
        from lora_kit.evaluation.reporting.show import show_verdict

        show_verdict(verdict, _stdout())
        _print(f"Report: {evaluation.directory}/report.html")
    raise typer.Exit(VERDICT_STATUS[verdict.decision])


@app.command()
def sequence(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_ADAPTER...", help="Stages in the order of their training."),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help="What each stage was trained for; by default its recipe's gain."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Base model of adapters that another tool made.")
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="With --backbone: how the base is stored.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("sequence"),
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure adapters that were trained one after the other on the tasks of all of them."""
    from lora_kit.evaluation.reporting.show_stages import show_matrix
    from lora_kit.stages import RECORD, evaluate_sequence

    found = evaluate_sequence(targets, suite, _backbone(backbone, quantization), output, fresh)
    if as_json:
        _print_json(found.to_dict())
    elif _is_main_process():
        columns = tuple(f"{c.suite}/{c.task} ({c.unit})" for c in found.columns)
        show_matrix(found.stages, columns, found.scores, found.transfers, _stdout())
        _print(f"Matrix: {output / RECORD}")


def _backbone(model: str | None, quantization: Quantization | None) -> BackboneSpec | None:
    if quantization and not model:
        raise RecipeError("--quantization goes with --backbone; an adapter of ours knows its own")
    return BackboneSpec(model=model, quantization=quantization or "none") if model else None


@app.command()
def merge(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run, or any PEFT adapter directory.")
    ],
    output: OutputOption = None,
    backbone: Annotated[
        str | None, typer.Option(help="Base model of an adapter that another tool made.")
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="With --backbone: how the base is stored.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its backbone, tensor by tensor, and ask both the same. Exit status 3:
    the files are not what was measured."""
    spec = _backbone(backbone, quantization)
    found = _pipeline().merge(target, output, spec)
    if as_json:
        _print_json({"merged": [merged.to_dict() for merged in found]})
    else:
        for merged in found:
            _print(f"Merged: {merged.directory}")
            for reason in merged.verification.reasons:
                _print(f"  NOT what was measured: {reason}")
        if output is None:
            arms = " ".join(f"--arm {merged.directory.name}" for merged in found)
            _print(f"Next: lora-kit evaluate {target} {arms}")
    passed = all(merged.verification.passed for merged in found)
    raise typer.Exit(0 if passed else VERDICT_STATUS["FAIL"])


@app.command()
def combine(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="Runs or adapter directories of one backbone."),
    ],
    output: Annotated[Path, typer.Option(help="Where the combined adapter goes.")],
    method: Annotated[
        Method,
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
    _quiet_libraries()
    from lora_kit.merging.combining.combine import Combination
    from lora_kit.merging.combining.combine import combine as combine_adapters
    from lora_kit.merging.combining.show import described

    how = Combination(method, tuple(weight or ()), weigh_by_examples, rank, density, seed)
    result = combine_adapters(adapters, how, output)
    if as_json:
        _print_json({"adapter": str(output), **result.to_dict()})
    else:
        _print(f"{described(result)}\nNext: lora-kit evaluate {output}")


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A merged model.")],
    to: Annotated[Target, typer.Option(help="gguf (a file), nf4 or int8 (a directory).")],
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
    _quiet_libraries()
    from lora_kit.merging.exporting.export import export as export_model
    from lora_kit.merging.exporting.show import described, read_texts

    result = export_model(directory, to, output, type_, read_texts(texts) if texts else ())
    if as_json:
        _print_json({"export": str(output), **result.to_dict()})
    else:
        _print(described(result))
    raise typer.Exit(0 if result.passed else VERDICT_STATUS["FAIL"])


@app.command()
def release(
    run: RunArgument,
    output: OutputOption = None,
    accept: Annotated[
        str | None,
        typer.Option(metavar="inconclusive", help="Release what is INCONCLUSIVE; with --reason."),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why; it stands in the card.")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Send it to the hub, in one commit.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: for nobody else.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Release a run that passed: model, adapter, evaluation, card and manifest, or refuse."""
    from lora_kit.releasing.acceptance import accepted

    acceptance = accepted(accept, reason)
    if private and not push:
        raise ReleaseError("--private goes with --push OWNER/NAME", status=2)
    made = _pipeline().release(run, output, acceptance, push, private)
    if as_json:
        _print_json(made.to_dict())
        return
    from lora_kit.releasing.released import show_release

    _print(show_release(made))


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A release or a run.")],
    as_json: JsonOption = False,
) -> None:
    """Check a release against its manifest, and a verdict against its ledger, offline."""
    pipeline = _pipeline()

    found = pipeline.verify(directory)
    if as_json:
        _print_json({"verified": str(directory), "found": found})
    else:
        _print(f"{directory}: {found}")


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Recipe to release in one: train, evaluate, merge, and release what passes."""
    checked = Recipe.load(recipe, set_ or [])
    pipeline = _pipeline()
    from lora_kit.evaluation.reporting.show import show_verdict

    outcome = pipeline.run(checked, output, overwrite, resume)
    if as_json:
        _print_json(outcome.to_dict())
    elif _is_main_process():
        show_verdict(outcome.verdict, _stdout())
        _print(f"Report: {outcome.directory}/evaluation/report.html")
        if outcome.release:
            _print(f"Released: {outcome.release}\nCheck it: lora-kit verify {outcome.release}")
        else:
            _print(outcome.refusal)
    raise typer.Exit(outcome.status)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """This machine and this stack: versions, devices, known traps. Exit status 2: one unguarded."""
    _quiet_libraries()
    from lora_kit.preflight.doctor import examine
    from lora_kit.preflight.show_doctor import show_diagnosis

    diagnosis = examine()
    if as_json:
        _print_json(diagnosis.to_dict())
    elif _is_main_process():
        show_diagnosis(diagnosis, _stdout())
    raise typer.Exit(0 if diagnosis.healthy else UNGUARDED_STATUS)


@app.command()
def recipes() -> None:
    """List the bundled recipes."""
    for name in recipe_names():
        _print(name)


def _stdout() -> Console:
    console = Console(highlight=False)
    # A file has no width; 80 columns would break the verdict's table.
    return console if console.is_terminal else Console(highlight=False, width=140)


def _is_main_process() -> bool:
    # Of the launcher's word alone: most commands have no need to load accelerate for it.
    return int(os.environ.get("RANK", "0")) == 0


def _print(text: str) -> None:
    if _is_main_process():
        _stdout().print(escape(text), soft_wrap=True)


def _print_json(value: object) -> None:
    if _is_main_process():
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; the one place where errors become messages and exit statuses."""
    try:
        app(arguments)
    except LoraKitError as error:
        Console(stderr=True, highlight=False).print(
            f"lora-kit: {escape(str(error))}", soft_wrap=True
        )
        raise SystemExit(error.status) from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        Console(stderr=True, highlight=False).print(
            f"lora-kit: cannot write {escape(str(error.filename or 'a file'))}: {error.strerror}. "
            "What was there before is whole; a training goes on with --resume",
            soft_wrap=True,
        )
        raise SystemExit(LoraKitError.status) from error


def _pipeline() -> ModuleType:
    """The stages. Their libraries take seconds to import, so what is refused is refused before."""
    _quiet_libraries()
    from lora_kit import pipeline

    return pipeline


def _quiet_libraries() -> None:
    """Leave stderr to our own progress and errors: these say nothing that a user could act on."""
    # Their bars are drawn over ours; PEFT's notice repeats what its own call was told to do.
    warnings.filterwarnings("ignore", module=r"(peft|transformers|trl|torch)\b")
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # Said once a layer and text, of a cast that its int8 layers are made to do.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # What it cannot read is told by our own message.
    datasets.logging.set_verbosity(logging.CRITICAL)
