"""Terminal output of the score matrix of continual training."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.statistics.transfer import Transfer


def show_matrix(
    stages: tuple[str, ...],
    columns: tuple[str, ...],
    scores: tuple[tuple[float, ...], ...],
    transfers: dict[str, Transfer],
    console: Console,
) -> None:
    """Print the scores of each stage on each task, and the transfer measures.

    Args:
        stages: name of each stage.
        columns: name of each task.
        scores: scores by stage and task.
        transfers: transfer measures by unit.
        console: console to print to.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("after")
    for column in columns:
        table.add_column(escape_terminal(column), justify="right")
    for stage, row in zip(stages, scores, strict=True):
        table.add_row(escape_terminal(stage), *(f"{value:.3f}" for value in row))
    console.print(table)
    if not transfers:
        console.print("No transfer metrics: every stage needs its own task, all in the same unit.")
    for unit, transfer in transfers.items():
        console.print(
            f"{escape_terminal(unit)} (higher is better): backward transfer "
            f"{transfer.backward:+.3f}, forward transfer {transfer.forward:+.3f}, "
            f"average forgetting {transfer.forgetting:+.3f}"
        )
