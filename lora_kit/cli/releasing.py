"""`release` and `verify`: what leaves the machine, and a check of it against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import JsonOption, OutputOption, RunArgument
from lora_kit.cli.output import print_json, print_text
from lora_kit.runtime.errors import ReleaseError


def release_command(
    run: RunArgument,
    output: OutputOption = None,
    accept: Annotated[
        str | None,
        typer.Option(metavar="inconclusive", help="Release an INCONCLUSIVE run; needs --reason."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Reason for --accept; printed at the top of the card.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            help="GGUF file to release beside the merged model; has to be judged before, with "
            "`lora-kit evaluate RUN --arm gguf=FILE`. May be repeated."
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload to the hub in one commit.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the hub repository private; with --push.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Release a run that passed: model, adapter, evaluation, card and manifest.

    Exit status: 0 released, 3 refused (FAIL), 4 refused (INCONCLUSIVE), 2 a stage is missing.
    """
    from lora_kit.releasing.acceptance import parse_acceptance

    acceptance = parse_acceptance(accept, reason)
    if private and not push:
        raise ReleaseError("--private: has no effect alone. Fix: add --push OWNER/NAME", status=2)
    quiet_libraries()
    from lora_kit.pipeline.releasing import release
    from lora_kit.releasing.release import show_release

    made = release(run, output, acceptance, push, private, file or ())
    if as_json:
        print_json(made.to_dict())
    else:
        print_text(show_release(made))


def verify_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A release, a run, or a directory with a verdict.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a release against its manifest, or a verdict against its ledger, offline.

    Exit status: 0 verified, whatever the verdict; 3 the release differs from its manifest; 2
    another problem, such as a verdict that does not follow from its ledger.
    """
    quiet_libraries()
    from lora_kit.pipeline.releasing import verify

    message = verify(directory)
    if as_json:
        print_json({"verified": str(directory), "found": message})
    else:
        print_text(f"{directory}: {message}")
