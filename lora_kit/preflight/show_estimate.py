"""Print memory and time of a training on a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_kit.preflight.device import DeviceMemory
from lora_kit.preflight.forecast import TimeEstimate
from lora_kit.preflight.gpu_time import UTILISATION
from lora_kit.preflight.gpus import fitting_gpus
from lora_kit.preflight.launch_file import LaunchFile
from lora_kit.preflight.memory import MemoryEstimate
from lora_kit.preflight.merged_memory import MergedMemory

GB = 1e9


def show_estimate(estimate: MemoryEstimate, console: Console) -> None:
    """Print the peak memory of a training and, for a GPU, the GPUs on which it fits."""
    batch = estimate.batch
    rows = "row" if batch.rows == 1 else "rows"
    console.print(
        f"\n[dim]estimated peak memory on {estimate.device} (largest forward pass: {batch.rows} "
        f"{rows} of {batch.length} tokens)[/]",
        soft_wrap=True,
    )
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, size in estimate.components.items():
        table.add_row(escape(name), f"{size / GB:.2f} GB")
    table.add_row("[bold]total[/]", f"[bold]{estimate.total / GB:.2f} GB[/]")
    console.print(table)
    if estimate.device == "cuda":
        console.print(_fitting(estimate))


def show_memory_per_process(file: LaunchFile, estimate: MemoryEstimate, console: Console) -> None:
    """Print the peak memory of each process that a launch file starts."""
    count = file.launch.processes
    processes = "1 process" if count == 1 else f"{count} processes"
    console.print(
        f"\nlaunched by {escape(str(file.path))}: {processes} ({launch_label(file)}); memory of "
        "each process:",
        soft_wrap=True,
    )
    show_estimate(estimate, console)


def show_assumed_seconds(seconds: Mapping[str, float], console: Console) -> None:
    """Print the assumed time of a training by the GPU; nothing if there is none."""
    if not seconds:
        return
    times = ", ".join(f"{name} {format_duration(one)}" for name, one in seconds.items())
    console.print(
        f"time at {UTILISATION:.0%} of each GPU's peak (assumed, not measured; attention, padding "
        f"and loading come on top): {times}",
        soft_wrap=True,
    )


def device_label(device: DeviceMemory) -> str:
    """Describe the memory of this machine's device, and the processes that hold most of it."""
    users = ", ".join(f"{one.name} ({one.process}) {one.bytes / GB:.1f} GB" for one in device.users)
    return (
        f"this machine has {device.total / GB:.1f} GB, of which {device.available / GB:.1f} GB are "
        f"free for this training{f' (the largest others: {users})' if users else ''}"
    )


def launch_label(file: LaunchFile) -> str:
    """Return the usual name of the kind of launch."""
    launch = file.launch
    if launch.fsdp:
        replicas = f", {launch.replicas} replicas" if launch.replicas > 1 else ""
        return f"FSDP {launch.fsdp_version}{replicas}"
    if launch.deepspeed:
        return f"ZeRO-{launch.zero_stage}"
    if launch.processes == 1:
        return "single process"
    return "data parallel"


def show_on_a_gpu(estimate: MemoryEstimate, console: Console) -> None:
    """Print on one line the memory of a training on a GPU, and the GPUs on which it fits."""
    batch = estimate.batch
    console.print(
        f"on a GPU: {estimate.total / GB:.2f} GB with {batch.rows} x {batch.length} tokens per "
        f"forward pass; {_fitting(estimate)}",
        soft_wrap=True,
    )


def show_merged(merged: MergedMemory, available: int | None, console: Console) -> None:
    """Print on one line the memory of the evaluation of the merged model.

    Args:
        merged: memory of the evaluation.
        available: bytes of memory of this machine's device; `None` for other machines.
        console: console to print on.
    """
    places = merged.device if merged.gpus == 1 else f"each of {merged.gpus} GPUs"
    line = (
        f"evaluation of the merged model, without the backbone: {merged.total / GB:.2f} GB on "
        f"{places} (weights in {merged.dtype}: {merged.weights / GB:.2f} GB)"
    )
    most = merged.total
    if merged.total_in_float32:
        most = merged.total_in_float32
        line += f"; {most / GB:.2f} GB if {merged.dtype} would round the adapter away"
    if available is None and merged.device == "cuda":
        gpus = fitting_gpus(most)
        line += f"; fits on {', '.join(gpus)}" if gpus else "; fits on no known GPU"
    console.print(escape(line), soft_wrap=True)
    fits = most <= available if available is not None else bool(fitting_gpus(most))
    if not fits:
        more = "raise evaluation.gpus" if merged.device == "cuda" else "use a larger machine"
        console.print(f"[red]It may not fit.[/] Fix: {more}, or set merge.dtype", soft_wrap=True)


def _fitting(estimate: MemoryEstimate) -> str:
    gpus = fitting_gpus(estimate.total)
    if gpus:
        return f"fits on {', '.join(gpus)}"
    return (
        "fits on no known GPU; lower data.max_length, or shard the weights over more GPUs "
        "(accelerate_configs/fsdp2.yaml)"
    )


def show_duration(estimate: TimeEstimate, console: Console) -> None:
    """Print the expected duration of a training and the measurement behind it."""
    probe, duration = estimate.probe, estimate.duration
    training, validation = map(format_duration, (duration.training, duration.validation))
    console.print(
        f"estimated time: {training} of training and {validation} of validation (measured: "
        f"{probe.seconds:.2f} s for a forward and backward pass of {probe.rows} x "
        f"{probe.tokens // probe.rows} tokens)",
        soft_wrap=True,
    )


def show_repeats(estimate: TimeEstimate, count: int, kind: str, console: Console) -> None:
    """Print the time of several trainings.

    Args:
        estimate: time of one.
        count: number of trainings, at most.
        kind: occasion of the trainings, such as `seeds`.
        console: console to print to.
    """
    one = estimate.duration.training + estimate.duration.validation
    console.print(
        f"{kind}: {count} trainings, {format_duration(count * one)} at most, and the evaluation of "
        "each",
        soft_wrap=True,
    )


def format_duration(seconds: float) -> str:
    """Return a duration in seconds as text, such as `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
