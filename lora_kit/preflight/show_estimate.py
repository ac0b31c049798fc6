"""Memory and time of a training on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.preflight.cards import fitting_cards
from lora_kit.preflight.launch_file import LaunchFile
from lora_kit.preflight.memory import MemoryEstimate
from lora_kit.preflight.probe import Duration, Probe

GB = 1e9


def show_estimate(estimate: MemoryEstimate, console: Console) -> None:
    """Print what a training holds at most, and where it fits."""
    batch = estimate.batch
    rows = "row" if batch.rows == 1 else "rows"
    console.print(
        f"\n[dim]peak memory on a {estimate.device} device, estimated from shapes: largest forward "
        f"pass {batch.rows} {rows} of {batch.length} tokens[/]",
        soft_wrap=True,
    )
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, size in estimate.components.items():
        table.add_row(escape(name), f"{size / GB:.2f} GB")
    table.add_row("[bold]all of it[/]", f"[bold]{estimate.total / GB:.2f} GB[/]")
    console.print(table)
    if estimate.device == "cuda":
        console.print(_cards(estimate))


def show_rank(file: LaunchFile, estimate: MemoryEstimate, console: Console) -> None:
    """Print what each process holds that a configuration file would start."""
    number = file.launch.processes
    processes = "1 process" if number == 1 else f"{number} processes"
    console.print(
        f"\nlaunched by {escape(str(file.path))}: {processes} ({how_launched(file)}), each of "
        "which takes:",
        soft_wrap=True,
    )
    show_estimate(estimate, console)


def how_launched(file: LaunchFile) -> str:
    """The kind of distribution as people call it."""
    launch = file.launch
    if launch.fsdp:
        return f"FSDP {launch.fsdp_version}"
    if launch.deepspeed:
        return f"ZeRO-{launch.zero_stage}"
    if launch.processes == 1:
        return "alone"
    return "data parallel"


def show_on_a_gpu(estimate: MemoryEstimate, console: Console) -> None:
    """Print in a line or two what a training would take on a GPU, and on which it fits."""
    batch = estimate.batch
    console.print(
        f"on a GPU: {estimate.total / GB:.2f} GB, with {batch.rows} x {batch.length} tokens a "
        f"forward pass; {_cards(estimate)}",
        soft_wrap=True,
    )


def _cards(estimate: MemoryEstimate) -> str:
    cards = fitting_cards(estimate.total)
    return f"fits on {', '.join(cards) if cards else 'no GPU known here'}"


def show_duration(duration: Duration, probe: Probe, console: Console) -> None:
    """Print how long a training takes, and what that stands on."""
    console.print(
        f"time: {spoken(duration.training)} of training and {spoken(duration.validation)} of "
        f"validation, by a pass over {probe.rows} rows of {probe.tokens // probe.rows} tokens that "
        f"took {probe.seconds:.2f} s",
        soft_wrap=True,
    )


def spoken(seconds: float) -> str:
    """A duration as people say it, such as `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
