"""Terminal output of a verdict."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.evaluation.task_verdict import FileTask, TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.statistics.decisions import Decision

STYLE = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
LEFT = ("suite", "task", "decision", "merged")


def show_verdict(verdict: Verdict, console: Console) -> None:
    """Print a table of all tasks, the findings and the decision."""
    names = ["suite", "task", "base", "adapter", "difference", "interval", "margin", "decision"]
    in_looks = any(task.looks.planned > 1 for _, task in verdict.tasks)
    if in_looks:
        names.insert(-1, "asked")
    if verdict.merged:
        names.append("merged")
    names += verdict.files
    table = Table(box=None, pad_edge=False)
    for name in names:
        is_left = name in LEFT or name in verdict.files
        table.add_column(escape_terminal(name), justify="left" if is_left else "right")
    for suite in verdict.suites:
        for number, task in enumerate(suite.tasks):
            cells = [
                escape_terminal(suite.suite) if number == 0 else "",
                escape_terminal(f"{task.task} ({task.unit})"),
                f"{task.base:.3f}",
                f"{task.adapter:.3f}",
                f"{task.interval.delta:+.3f}",
                f"{task.interval.low:+.3f} to {task.interval.high:+.3f}",
                "" if task.margin is None else f"{task.margin:g}",
                *([_asked(task)] if in_looks else []),
                f"{_styled(task.decision)}{_needs(task)}",
            ]
            if verdict.merged:
                cells.append(_styled(task.merged) if task.merged else "")
            by_file = {one.arm: one for one in task.files}
            cells += [_file(by_file.get(name)) for name in verdict.files]
            table.add_row(*cells)
    console.print(table)
    for _, task in verdict.tasks:
        if task.reason:
            name, reason = escape_terminal(task.task), escape_terminal(task.reason)
            console.print(
                f"{name}: would pass by its interval alone, but {reason}.", highlight=False
            )
    for finding in verdict.findings:
        kind = finding.kind[:1].upper() + finding.kind[1:]
        console.print(
            f"[yellow]{escape_terminal(kind)}[/]: {escape_terminal(finding.text)}.", highlight=False
        )
    for suite, task in verdict.shown_tasks:
        _show_judged(task, task in suite.beside, console)
    console.print(f"Verdict: {_styled(verdict.decision)}")
    if verdict.merged:
        console.print(f"Merged model: {_styled(verdict.merged)}")
    if verdict.selection_sentence:
        console.print(escape_terminal(verdict.selection_sentence), highlight=False)
    for name, decision in verdict.files.items():
        console.print(f"{escape_terminal(name)}: {_styled(decision)}", highlight=False)


def _show_judged(task: TaskVerdict, is_beside: bool, console: Console) -> None:
    if task.judged is None:
        return
    interval = task.interval
    beside = " (beside the verdict)" if is_beside else ""
    found = f"{interval.delta:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
    text = f"{task.task}{beside}: {found}, {task.judged.sentence}."
    console.print(escape_terminal(text), highlight=False)


def _styled(decision: Decision) -> str:
    return f"[{STYLE[decision]}]{decision}[/]"


def _asked(task: TaskVerdict) -> str:
    looks = task.looks
    at = f", look {looks.ended_at} of {looks.planned}" if looks.planned > 1 else ""
    return f"{looks.asked:,} of {looks.items:,}{at}"


def _needs(task: TaskVerdict) -> str:
    if task.items_needed is None:
        return ""
    return f" (needs about {task.items_needed:,} items, has {task.interval.items:,})"


def _file(task: FileTask | None) -> str:
    return f"{_styled(task.decision)} {task.interval.delta:+.3f}" if task else ""
