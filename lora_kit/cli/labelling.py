"""`select`: choose the texts to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import JsonOption, RunArgument
from lora_kit.cli.output import print_json, print_text


def select_command(
    run: RunArgument,
    unlabeled: Annotated[
        Path,
        typer.Argument(
            metavar="TEXTS", help='File or folder of unlabelled rows: {"text": "..."} each.'
        ),
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of texts to choose.")] = 50,
    by: Annotated[
        str,
        typer.Option(
            metavar="both|margin|entropy|diversity",
            help="Choose uncertain texts (margin, entropy), those far from all labelled ones "
            "(diversity), or far ones among the uncertain (both).",
        ),
    ] = "both",
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="JSON Lines file to write; by default to_label.jsonl in the run."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the texts that are worth a label next, for a trained classifier.

    Writes rows of `text` and `label`, the label to be filled in, with the predicted class and why
    each was chosen. Texts that the run was trained on are refused.
    """
    quiet_libraries()
    from lora_kit.pipeline.next_labels import select_texts

    chosen = select_texts(run, unlabeled, n, by, output, text_column)
    if as_json:
        print_json(chosen.to_dict())
        return
    for row in chosen.rows[:10]:
        print_text(f"{row.id}: {row.reason}")
    more = len(chosen.rows) - 10
    if more > 0:
        print_text(f"{more:,} more")
    print_text(
        f"{chosen.output}: {len(chosen.rows):,} of {chosen.texts:,} texts. Fill in `label`, then "
        "add the file to data.train"
    )
