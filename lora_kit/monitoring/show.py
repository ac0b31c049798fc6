"""Terminal output of a stream."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.evaluation.reporting.notation import format_p_value
from lora_kit.evaluation.reporting.show import STYLE
from lora_kit.monitoring.result import Monitoring

MAX_TEXTS, MAX_CHARACTERS = 3, 100
"""Foreign texts that are printed, and characters of each."""


def show_monitoring(found: Monitoring, console: Console) -> None:
    """Print the signals, the most foreign texts of an alarm, and a sentence on the alarms."""
    table = Table(box=None, pad_edge=False)
    for name in ("signal", "reference", "last window", "evidence", "limit", "p", "alarm"):
        table.add_column(name, justify="left" if name in ("signal", "alarm") else "right")
    for one in found.signals:
        alarm = found.alarms.get(one.name)
        table.add_row(
            f"{one.title} ({one.unit})",
            f"{one.reference:.3g}",
            f"{one.values[-1]:.3g}",
            f"10^{one.strongest / math.log(10):.1f}",
            f"10^{found.limit / math.log(10):.1f}",
            format_p_value(found.p_value(one)),
            "none" if alarm is None else f"[{STYLE['FAIL']}]window {alarm}[/]",
        )
    console.print(table)
    for note in found.notes:
        console.print(escape_terminal(note), highlight=False)
    if found.waiting:
        console.print(f"{found.waiting} texts wait for a full window.", highlight=False)
    if found.alarms:
        for foreign in found.foreign[:MAX_TEXTS]:
            start = " ".join(foreign.text.split())[:MAX_CHARACTERS]
            console.print(escape_terminal(f"Foreign: {foreign.origin}: {start}"), highlight=False)
    if found.verdict:
        decision = found.verdict.decision
        console.print(
            f"Verdict on the {found.verdict.items} texts with answers: [{STYLE[decision]}]"
            f"{decision}[/] ({escape_terminal(found.verdict.report)})",
            highlight=False,
        )
    console.print(escape_terminal(found.sentence), highlight=False)
