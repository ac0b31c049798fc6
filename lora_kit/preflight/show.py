"""Print a plan on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lora_kit.evaluation.reporting.notation import is_percent
from lora_kit.preflight.forecast import Forecast
from lora_kit.preflight.plan import Plan
from lora_kit.preflight.samples import LabelSpan
from lora_kit.preflight.show_advice import show_advice
from lora_kit.preflight.show_audit import show_audit
from lora_kit.preflight.show_estimate import (
    device_label,
    show_assumed_seconds,
    show_duration,
    show_estimate,
    show_memory_per_process,
    show_merged,
    show_on_a_gpu,
    show_repeats,
)
from lora_kit.recipe.data import Packing
from lora_kit.recipe.objective import HEADED, OF_SEVERAL_TEXTS, ON_POLICY, Objective
from lora_kit.runtime.console import visible

# Units of a step's batch, for objectives whose unit is not an example.
UNITS: dict[Objective, str] = {
    **dict.fromkeys(OF_SEVERAL_TEXTS, "pairs"),
    "kto": "answers",
    **dict.fromkeys(ON_POLICY, "prompts"),
}
PACKINGS: dict[Packing, str] = {
    True: "packed rows",
    False: "padded rows",
    "unpadded": "rows without padding",
}


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan: facts, memory and time, warnings, hints, audit, power and samples."""
    console.print(f"[bold]{escape(plan.recipe.name)}[/]")
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(plan).items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(table)
    _show_estimates(plan, console)
    found = plan.on_backbone
    for warning in found.checked.warnings if found else ():
        console.print(f"[yellow]![/] {escape(warning)}", soft_wrap=True)
    thoughts = plan.thoughts.warning(plan.recipe.evaluation) if plan.thoughts else ""
    if thoughts:
        console.print(f"[yellow]![/] {escape(thoughts)}", soft_wrap=True)
    for hint in found.hints if found else ():
        console.print(
            f"[cyan]try[/] --set {escape(' --set '.join(hint.assignments))}: {escape(hint.reason)}",
            soft_wrap=True,
        )
    if found:
        show_advice(found.advice, plan.recipe, console)
        console.print()
        show_audit(found.audit, console)
    _show_power(plan, console)
    for number, sample in enumerate(found.samples if found else (), start=1):
        console.print(f"\n[dim]sample {number}; supervised tokens are [/][reverse]highlighted[/]")
        console.print(_highlighted(sample))
    if plan.without_weights:
        console.print(
            f"\n[yellow]Planned from shapes alone:[/] {escape(plan.without_weights)}. Left to the "
            "training: the fingerprint, the check of packing, rows that the backbone generates, "
            "suspected label errors",
            soft_wrap=True,
        )
    if plan.missing_backbone:
        console.print(
            "\n[yellow]Tokens, coverage, estimates and samples need the backbone.[/] "
            f"{escape(plan.missing_backbone)}",
            soft_wrap=True,
        )


def _facts(plan: Plan) -> dict[str, str]:
    recipe, spec = plan.recipe, plan.recipe.training
    unit = UNITS.get(spec.objective, "examples")
    epochs = "1 epoch" if spec.epochs == 1 else f"{spec.epochs:g} epochs"
    replay = f" ({plan.replay_rows} of them replay)" if plan.replay_rows else ""
    facts = {
        "backbone": f"{recipe.backbone.model}, quantization {recipe.backbone.quantization}",
        "adapter": recipe.adapter.describe(),
        "training": f"{plan.optimizer_steps} steps of {spec.batch_size} {unit} "
        f"({plan.micro_batch_size} per forward pass), {epochs}, learning rate "
        f"{spec.learning_rate:g}, schedule {spec.lr_scheduler}",
        "rows": f"{plan.rows} for training{replay}, {plan.validation_rows} held out",
        "sources": ", ".join(
            f"{name}: {form}" if form else name for name, form in plan.formats.items()
        ),
    }
    if found := plan.on_backbone:
        if found.fingerprint:
            facts["fingerprint"] = found.fingerprint
        counts = found.counts
        facts["tokens"] = (
            f"{counts.tokens:,} ({counts.supervised_tokens:,} supervised); {counts.truncated} "
            f"examples truncated, {counts.dropped} dropped; {counts.replay_rows} replay rows"
        )
        unused = [
            f"{name} of {source} ({rows:,} {'row' if rows == 1 else 'rows'})"
            for source, one in counts.sources.items()
            for name, rows in one.unused.items()
        ]
        unused += [
            f"{name} of task {task} ({items:,} {'item' if items == 1 else 'items'})"
            for task, columns in found.unused_by_task.items()
            for name, items in columns.items()
        ]
        if unused:
            facts["not used"] = ", ".join(unused)
        if plan.thoughts and plan.thoughts.sentence:
            facts["thoughts"] = plan.thoughts.sentence
        facts["attention"] = f"{found.attention}, {PACKINGS[found.packing]}"
        covered = found.coverage
        facts["parameters"] = (
            f"{covered.trainable_parameters:,} of {covered.total_parameters:,} trained"
        )
        facts["adapted modules"] = ", ".join(
            f"{one.adapted} of {one.total} {one.module_class}" for one in covered.classes
        )
    return facts


def _show_estimates(plan: Plan, console: Console) -> None:
    found = plan.on_backbone
    time = (found.timing or (found.forecast.time if found.forecast else None)) if found else None
    if found and found.forecast:
        _show_forecast(found.forecast, console)
    if found and found.timing:
        show_duration(found.timing, console)
        console.print("Memory is not estimated for models with a head and encoder-decoders.")
    elif plan.recipe.training.objective in HEADED:
        console.print("Memory and time are not estimated for models with a head.")
    if found and plan.launch_file and found.memory_per_process:
        show_memory_per_process(plan.launch_file, found.memory_per_process, console)
        show_assumed_seconds(found.assumed_seconds, console)
    if time is not None:
        for kind, count in plan.trainings.items():
            show_repeats(time, count, kind, console)
    if found and found.merged:
        available = found.forecast.device.available if found.forecast else None
        show_merged(found.merged, available, console)


def _show_forecast(forecast: Forecast, console: Console) -> None:
    if forecast.time:
        show_duration(forecast.time, console)
    show_estimate(forecast.memory, console)
    if forecast.on_a_gpu:
        show_on_a_gpu(forecast.on_a_gpu, console)
    if forecast.fits:
        console.print(f"[dim]{escape(device_label(forecast.device))}[/]", soft_wrap=True)
        return
    problem = f"[red]The training does not fit: {escape(device_label(forecast.device))}.[/]"
    remedies = []
    if forecast.memory.total <= forecast.device.total:
        remedies.append("end other processes")
    if forecast.advice:
        changes = " ".join(f"--set {change}" for change in forecast.advice.assignments)
        remedies.append(f"add {escape(changes)}")
    remedies = remedies or ["use a smaller backbone", "a machine with more memory"]
    console.print(f"{problem} Fix: {', or '.join(remedies)}", soft_wrap=True)


def _show_power(plan: Plan, console: Console) -> None:
    """Print the smallest effect that each task can confirm, beside the target of its suite."""
    console.print("\n[dim]smallest gain or margin that each task can confirm with 80% power[/]")
    table = Table(box=None, pad_edge=False)
    for name in ("suite", "task", "items", "can confirm", "target", "items needed", "assuming"):
        table.add_column(name, justify="right" if name in ("items", "items needed") else "left")
    for suite in plan.suites:
        effect = "gain of" if suite.role == "gain" else "margin of"
        for number, task in enumerate(suite.tasks):
            short = task.needed is not None and task.items is not None and task.needed > task.items
            needed = "" if task.needed is None else f"{task.needed:,}"
            table.add_row(
                escape(f"{suite.suite} ({suite.role})") if number == 0 else "",
                escape(task.task),
                "unknown" if task.items is None else f"{task.items:,}",
                "" if task.smallest is None else f"{effect} {_amount(task.smallest, task.unit)}",
                "" if task.target is None else _amount(task.target, task.unit),
                f"[yellow]{needed}[/]" if short else needed,
                task.assumed or "spread unknown until measured",
            )
    console.print(table)
    _show_asked(plan, console)


def _show_asked(plan: Plan, console: Console) -> None:
    """Print how many items are asked until each task ends, at most and on average."""
    tasks = [(suite, task) for suite in plan.suites for task in suite.tasks if task.asked]
    if not tasks:
        return
    names = list(dict.fromkeys(name for _, task in tasks for name in task.asked))
    console.print("\n[dim]items that are asked until a task is decided, on average, if there is[/]")
    table = Table(box=None, pad_edge=False)
    for name in ("suite", "task", *names, "at most"):
        table.add_column(name, justify="left" if name in ("suite", "task") else "right")
    shown = ""
    for suite, task in tasks:
        means = [f"{task.asked[name]:,}" if name in task.asked else "" for name in names]
        name = "" if suite.suite == shown else suite.suite
        shown = suite.suite
        table.add_row(escape(name), escape(task.task), *means, f"{task.items:,}")
    console.print(table)


def _amount(value: float, unit: str) -> str:
    if is_percent(unit):
        return f"{100 * value:.2g} points"
    return f"{value:.2g} {unit}"


def _highlighted(sample: tuple[LabelSpan, ...]) -> Text:
    return Text.assemble(
        *((visible(one.text), "reverse" if one.supervised else "") for one in sample)
    )
