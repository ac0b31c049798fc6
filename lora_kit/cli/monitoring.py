"""`monitor`: texts that an adapter meets against those that it was judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_kit.cli.libraries import quiet_libraries
from lora_kit.cli.options import JsonOption
from lora_kit.cli.output import print_json, print_text, stdout

ALARM_STATUS = 3


def monitor_command(
    target: Annotated[
        Path, typer.Argument(metavar="RELEASE_OR_RUN", help="A release, or a run that was judged.")
    ],
    texts: Annotated[
        Path,
        typer.Argument(
            metavar="TEXTS",
            help="Texts in the order in which they came, or with a field `time` (ISO 8601, or a "
            "number): .jsonl, .json, .csv or .parquet, in any row format; answers may be missing.",
        ),
    ],
    window: Annotated[
        int | None, typer.Option(help="Texts of a window, 10 or more; by default 100.")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Span of a window instead: 12h, 1d or 1w, by `time`."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Leave out texts that are older, by `time`.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Field whose value is shared by texts that are not independent, such as a "
            "conversation; they count once, as equal texts do.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts to compare with, such as those of the first month, in place of the "
            "training rows and the items of the gain suites.",
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(help="Probability of a false alarm, of all signals and windows together."),
    ] = 0.05,
    model: Annotated[
        bool,
        typer.Option(
            "--model",
            help="Load the model as well: compare losses (of a classifier, predicted classes and "
            "confidence) with those of the judged items, and judge the adapter on texts that have "
            "answers.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory of monitor.html and monitor.json.")
    ] = Path("monitor"),
    as_json: JsonOption = False,
) -> None:
    """Test if the texts that an adapter meets are still those that it was judged on.

    Words and lengths of the texts are compared, window by window, with the training rows and the
    items of the gain suites; needs no model. The error holds for all windows together, however long
    the stream goes on: repeat the command on the same file as it grows, since earlier windows then
    stay as they were. An alarm says that the texts have changed, not that the adapter fails on
    them.

    Exit status: 0 no alarm, 3 an alarm or a FAIL on texts with answers.
    """
    quiet_libraries()
    from lora_kit.monitoring.show import show_monitoring
    from lora_kit.pipeline.monitoring import PAGE, MonitorRequest, monitor

    found = monitor(
        MonitorRequest(
            target, texts, window, every, since, cluster, reference, alpha, model, output
        )
    )
    if as_json:
        print_json(found.to_dict())
    else:
        show_monitoring(found, stdout())
        print_text(f"Page: {output / PAGE}")
    if found.fails:
        raise typer.Exit(ALARM_STATUS)
