"""The dial on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import visible
from lora_kit.evaluation.reporting.show import show_verdict
from lora_kit.evaluation.verdict import TaskVerdict
from lora_kit.rescaling.pick import Candidate, most_forgotten
from lora_kit.rescaling.record import RescaleResult


def show_rescale(found: RescaleResult, console: Console) -> None:
    """Print what half A said of each scale, what was taken, and the verdict of half B."""
    gained = [name for name, _ in found.candidates[0].tasks("gain")]
    table = Table(box=None, pad_edge=False, title="Half A", title_justify="left")
    for name in ("scale", *map(_text, gained), "retention nearest to its margin", "kept", ""):
        table.add_column(name)
    for number, candidate in enumerate(found.candidates):
        table.add_row(*_cells(candidate), "taken" if number == found.pick.chosen else "")
    console.print(table)
    console.print(f"{found.pick.why[:1].upper()}{_text(found.pick.why[1:])}.")
    if found.proof is None:
        console.print("Nothing is taken.")
        return
    console.print("\nHalf B, which the pick did not see")
    show_verdict(found.proof, console)


def _cells(candidate: Candidate) -> list[str]:
    name, worst = most_forgotten(candidate)
    return [
        candidate.strength.name,
        *(_difference(task) for _, task in candidate.tasks("gain")),
        f"{_text(name)} {_difference(worst)}, margin {worst.margin:g}",
        f"not shown: {len(candidate.lost)}" if candidate.lost else "all",
    ]


def _difference(task: TaskVerdict) -> str:
    of = task.interval
    return f"{of.delta:+.3f} ({of.low:+.3f} to {of.high:+.3f})"


def _text(value: str) -> str:
    return escape(visible(value))
