"""The verdict on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.evaluation.verdict import TaskVerdict, Verdict

STYLE = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}


def show_verdict(verdict: Verdict, console: Console) -> None:
    """Print one table of all tasks and the decision."""
    table = Table(box=None, pad_edge=False)
    for name in (
        "suite",
        "task",
        "base",
        "adapter",
        "difference",
        "interval",
        "margin",
        "decision",
    ):
        table.add_column(name, justify="left" if name in ("suite", "task", "decision") else "right")
    for suite in verdict.suites:
        for number, task in enumerate(suite.tasks):
            table.add_row(
                escape(suite.suite) if number == 0 else "",
                escape(f"{task.task} ({task.unit})"),
                f"{task.base:.3f}",
                f"{task.adapter:.3f}",
                f"{task.interval.delta:+.3f}",
                f"{task.interval.low:+.3f} to {task.interval.high:+.3f}",
                "" if task.margin is None else f"{task.margin:g}",
                f"[{STYLE[task.decision]}]{task.decision}[/]{_needs(task)}",
            )
    console.print(table)
    console.print(f"Verdict: [{STYLE[verdict.decision]}]{verdict.decision}[/]")


def _needs(task: TaskVerdict) -> str:
    if task.items_needed is None:
        return ""
    return f" (about {task.items_needed} items would decide, it has {task.interval.items})"
