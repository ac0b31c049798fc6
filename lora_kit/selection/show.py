"""Print a comparison of backbones to the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.selection.record import BackboneResult, MeanScore


def show_backbones(several: Sequence[BackboneResult], console: Console) -> None:
    """Print the ranked table, then the refused backbones with their reasons."""
    measured = [one for one in several if not one.refused]
    if measured:
        console.print(_table(measured))
        console.print(
            "Means over items with 95% intervals; ranked by the best score on each task. "
            "token/s and memory are for training the recipe's adapter on this machine."
        )
    for one in several:
        if one.refused:
            console.print(
                f"[yellow]{escape_terminal(one.backbone)}[/]: {escape_terminal(one.refused)}"
            )


def _table(measured: Sequence[BackboneResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "backbone", "task", "zero-shot", "few-shot", "probe"):
        table.add_column(name)
    for name in ("token/s", "memory", "parameters"):
        table.add_column(name, justify="right")
    table.add_column("licence")
    for one in measured:
        speed = f"{one.tokens_per_second:.0f}" if one.tokens_per_second else "does not fit"
        facts = (
            speed,
            "not known" if one.memory is None else f"{one.memory / 1e9:.1f} GB",
            f"{one.parameters / 1e6:,.0f} M",
            escape_terminal(one.license or "not stated"),
        )
        for number, score in enumerate(one.scores):
            is_first = number == 0
            table.add_row(
                str(one.rank) if is_first else "",
                escape_terminal(one.backbone) if is_first else "",
                escape_terminal(f"{score.task} ({score.unit})"),
                *(_mean_score(one) for one in (score.zero_shot, score.few_shot, score.probe)),
                *(facts if is_first else ("",) * len(facts)),
            )
    return table


def _mean_score(score: MeanScore | None) -> str:
    return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})" if score else "-"
