"""`release` and `verify`: what leaves the machine, and whether it is what its manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.libraries import load_pipeline
from lora_kit.cli.options import JsonOption, OutputOption, RunArgument
from lora_kit.cli.output import print_json, print_text
from lora_kit.runtime.errors import ReleaseError


def release_command(
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
    made = load_pipeline().release(run, output, acceptance, push, private)
    if as_json:
        print_json(made.to_dict())
        return
    from lora_kit.releasing.released import show_release

    print_text(show_release(made))


def verify_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A release or a run.")],
    as_json: JsonOption = False,
) -> None:
    """Check a release against its manifest, and a verdict against its ledger, offline."""
    pipeline = load_pipeline()

    found = pipeline.verify(directory)
    if as_json:
        print_json({"verified": str(directory), "found": found})
    else:
        print_text(f"{directory}: {found}")
