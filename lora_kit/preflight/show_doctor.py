"""The diagnosis on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.preflight.doctor import Diagnosis, Finding


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print what was found, what is wrong last."""
    _show_machine(diagnosis, console)
    table = Table(box=None, pad_edge=False)
    for name in ("trap", "what goes wrong", "here", "guarded", "how"):
        table.add_column(name, overflow="fold")
    for finding in diagnosis.findings:
        table.add_row(
            escape(finding.trap),
            escape(finding.wrong),
            _presence(finding),
            "yes" if finding.guarded else "[bold red]NO[/]",
            escape(finding.guard),
        )
    console.print(table)
    bare = [finding.trap for finding in diagnosis.findings if not finding.guarded]
    if bare:
        console.print(
            f"\n[bold red]not guarded here: {escape(', '.join(bare))}[/]. With these versions "
            "results may be wrong without an error; install those of constraints.txt",
            soft_wrap=True,
        )
    else:
        console.print(f"\nall {len(diagnosis.findings)} known traps are guarded here")


def _show_machine(diagnosis: Diagnosis, console: Console) -> None:
    hardware = diagnosis.machine
    grid = Table.grid(padding=(0, 2))
    facts = {
        "machine": f"{hardware['system']} {hardware['architecture']}, {hardware['cores']} cores, "
        f"{hardware['cpu_capability']}, {hardware['memory'] / 1e9:.0f} GB",
        "device": ", ".join([diagnosis.device, *hardware["accelerators"]]),
        "versions": ", ".join(
            f"{one.name} {one.found}" + ("" if one.is_checked else f" (checked: {one.checked})")
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


def _presence(finding: Finding) -> str:
    if finding.present is None:
        return "it depends"
    return "yes" if finding.present else "no"
