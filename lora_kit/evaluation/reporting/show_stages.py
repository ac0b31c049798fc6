"""The matrix of a sequence on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.statistics.transfer import Transfer


def show_matrix(
    stages: tuple[str, ...],
    columns: tuple[str, ...],
    scores: tuple[tuple[float, ...], ...],
    transfers: dict[str, Transfer],
    console: Console,
) -> None:
    """Print stages by tasks, and what the sequence did on the whole."""
    table = Table(box=None, pad_edge=False)
    table.add_column("after")
    for column in columns:
        table.add_column(escape(column), justify="right")
    for stage, row in zip(stages, scores, strict=True):
        table.add_row(escape(stage), *(f"{value:.3f}" for value in row))
    console.print(table)
    if not transfers:
        console.print("No transfer: not every stage has a task of its own in one same unit.")
    for unit, found in transfers.items():
        console.print(
            f"{escape(unit)} (higher is better): backward transfer {found.backward:+.3f}, forward "
            f"transfer {found.forward:+.3f}, average forgetting {found.forgetting:+.3f}"
        )
