"""Print a sweep to the terminal."""

from __future__ import annotations

from rich.console import Console

from lora_kit.selection.sweep.result import SweepResult


def show_sweep(result: SweepResult, console: Console) -> None:
    """Print the result."""
    console.print(result.choice.reason)
