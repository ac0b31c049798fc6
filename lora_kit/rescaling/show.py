"""Print a rescaling to the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.gain_choice import most_forgotten_task
from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.evaluation.reporting.show import show_verdict
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.rescaling.choice import Candidate
from lora_kit.rescaling.record import RescaleResult


def show_rescale(result: RescaleResult, console: Console) -> None:
    """Print the scales on half A, the chosen one, and the verdict on half B."""
    gain_tasks = [name for name, _ in result.candidates[0].tasks("gain")]
    table = Table(box=None, pad_edge=False, title="Half A", title_justify="left")
    for name in (
        "scale",
        *map(escape_terminal, gain_tasks),
        "retention closest to margin",
        "retention",
        "",
    ):
        table.add_column(name)
    for number, candidate in enumerate(result.candidates):
        table.add_row(*_cells(candidate), "chosen" if number == result.choice.chosen else "")
    console.print(table)
    if result.reduced is not None:
        console.print(f"{result.reduced.describe()}.")
    reason = result.choice.reason
    console.print(f"{reason[:1].upper()}{escape_terminal(reason[1:])}.")
    if result.proof is None:
        console.print("No scale is chosen, and no adapter is written.")
        return
    console.print("\nHalf B, unseen when the scale was chosen")
    show_verdict(result.proof, console)


def _cells(candidate: Candidate) -> list[str]:
    name, worst = most_forgotten_task(candidate.verdict)
    return [
        candidate.scale.name,
        *(_difference(task) for _, task in candidate.tasks("gain")),
        f"{escape_terminal(name)} {_difference(worst)}, margin {worst.margin:g}",
        f"not shown: {len(candidate.failed_retention)}" if candidate.failed_retention else "all",
    ]


def _difference(task: TaskVerdict) -> str:
    interval = task.interval
    return f"{interval.delta:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
