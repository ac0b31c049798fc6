"""Terminal output of a comparison of runs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.evaluation.reporting.notation import format_p_value
from lora_kit.evaluation.reporting.show import STYLE
from lora_kit.selection.comparison.headline import chosen_sentences, formatted, headline
from lora_kit.selection.comparison.result import RunComparison

MAX_LINES = 12
"""Largest number of differences that are printed."""
COLUMNS = ("task", "first", "second", "difference", "interval", "p (Holm)", "better")


def show_run_comparison(found: RunComparison, console: Console) -> None:
    """Print the verdicts, the differences of the shown pairs, and the most important one."""
    for number, run in enumerate(found.runs):
        decision = found.decision(number)
        line = f"{escape_terminal(run.name)}: [{STYLE[decision]}]{decision}[/]"
        console.print(line, highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("task", "better") else "right")
    for one in found.shown[:MAX_LINES]:
        values = formatted(one)
        better = "undecided" if one.better is None else found.runs[one.better].name
        table.add_row(
            escape_terminal(f"{found.task_of(one).name} ({one.unit})"),
            escape_terminal(f"{found.runs[one.first].name} {values.before}"),
            escape_terminal(f"{found.runs[one.second].name} {values.after}"),
            values.delta,
            f"{values.low} to {values.high}",
            format_p_value(one.adjusted),
            escape_terminal(better),
        )
    console.print(table)
    if len(found.shown) > MAX_LINES:
        console.print(f"{len(found.shown) - MAX_LINES} more are on the page.", highlight=False)
    for left in found.left_out:
        text = f"Not compared: {left.subject}: {left.reason}."
        console.print(escape_terminal(text), highlight=False)
    for sentence in (*chosen_sentences(found), headline(found)):
        console.print(escape_terminal(sentence), highlight=False)
