"""Print the diagnosis of a machine on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.preflight.doctor import Diagnosis

PRESENCE = {True: "yes", False: "no", None: "depends on the recipe"}


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print the machine, the traps, and last the traps without a working guard."""
    _show_machine(diagnosis, console)
    table = Table(box=None, pad_edge=False)
    for name in ("trap", "problem", "present", "guarded", "guard"):
        table.add_column(name, overflow="fold")
    for finding in diagnosis.findings:
        table.add_row(
            escape(finding.trap),
            escape(finding.wrong),
            PRESENCE[finding.present],
            "yes" if finding.guarded else "[bold red]NO[/]",
            escape(finding.guard),
        )
    console.print(table)
    unguarded = [finding.trap for finding in diagnosis.findings if not finding.guarded]
    if unguarded:
        console.print(
            f"\n[bold red]not guarded: {escape(', '.join(unguarded))}[/]. Results may be wrong "
            "without an error. Fix: install the versions of constraints.txt",
            soft_wrap=True,
        )
    else:
        console.print(f"\nall {len(diagnosis.findings)} known traps are guarded")


def _show_machine(diagnosis: Diagnosis, console: Console) -> None:
    hardware = diagnosis.machine
    grid = Table.grid(padding=(0, 2))
    facts = {
        "machine": f"{hardware['system']} {hardware['architecture']}, {hardware['cores']} cores, "
        f"{hardware['cpu_capability']}, {hardware['memory'] / 1e9:.0f} GB",
        "device": ", ".join([diagnosis.device, *hardware["accelerators"]]),
        "versions": ", ".join(
            f"{one.name} {one.found}" + ("" if one.is_checked else f" (tested: {one.checked})")
            for one in diagnosis.versions
        ),
        "speed": ", ".join(
            f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in diagnosis.rates.items()
        ),
        "quantization": ", ".join(
            f"{name} {'works' if works else 'DOES NOT WORK'}"
            for name, works in diagnosis.quantizations.items()
        ),
    }
    for name, value in facts.items():
        grid.add_row(f"[dim]{name}[/]", escape(value))
    console.print(grid)
    console.print()
