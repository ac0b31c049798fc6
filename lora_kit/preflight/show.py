"""The plan on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lora_kit.evaluation.reporting.notation import is_percent
from lora_kit.preflight.forecast import Forecast
from lora_kit.preflight.plan import Plan, Span
from lora_kit.preflight.show_audit import show_audit
from lora_kit.preflight.show_estimate import (
    GB,
    show_duration,
    show_estimate,
    show_on_a_gpu,
    show_rank,
)
from lora_kit.recipe.objective import HEADED

# What a step's batch counts, where it is no example of what is said.
UNITS = {"dpo": "pairs", "orpo": "pairs", "reward": "pairs", "kto": "answers", "grpo": "prompts"}


def show_plan(plan: Plan, console: Console) -> None:
    """Print what the recipe would do."""
    recipe = plan.recipe
    spec = recipe.training
    console.print(f"[bold]{escape(recipe.name)}[/]")
    table = Table.grid(padding=(0, 2))
    unit = UNITS.get(spec.objective, "examples")
    replayed = f" ({plan.replay_rows} of them replayed)" if plan.replay_rows else ""
    facts = {
        "backbone": f"{recipe.backbone.model}, {recipe.backbone.quantization}",
        "adapter": recipe.adapter.describe(),
        "training": f"{plan.optimizer_steps} steps of {spec.batch_size} {unit} "
        f"({plan.micro_batch_size} a forward pass), {spec.epochs:g} epochs, "
        f"learning rate {spec.learning_rate:g}, {spec.lr_scheduler}",
        "rows": f"{plan.rows} for training{replayed}, {plan.validation_rows} held out",
        "formats": ", ".join(
            f"{name}: {form}" if form else name for name, form in plan.formats.items()
        ),
    }
    if plan.fingerprint:
        facts["fingerprint"] = plan.fingerprint
    if plan.counts:
        counts = plan.counts
        facts["tokens"] = (
            f"{counts.tokens:,}, {counts.supervised_tokens:,} supervised; "
            f"{counts.truncated} rows cut, {counts.dropped} dropped, {counts.replay_rows} replay"
        )
    if plan.coverage:
        facts["parameters"] = (
            f"{plan.coverage.trainable_parameters:,} trained of {plan.coverage.total_parameters:,}"
        )
        facts["coverage"] = ", ".join(
            f"{one.adapted} of {one.total} {one.module_class}" for one in plan.coverage.classes
        )
    for name, value in facts.items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(table)
    if plan.forecast:
        _show_forecast(plan.forecast, console)
    if plan.timing:
        show_duration(plan.timing.duration, plan.timing.probe, console)
    if plan.timing or recipe.training.objective in HEADED:
        what = "Memory of such a training is" if plan.timing else "Memory and time are"
        console.print(f"{what} not estimated.")
    if plan.launch_file and plan.rank:
        show_rank(plan.launch_file, plan.rank, console)
    for warning in plan.checked.warnings if plan.checked else ():
        console.print(f"[yellow]![/] {escape(warning)}", soft_wrap=True)
    for hint in plan.hints:
        console.print(
            f"[cyan]try[/] --set {escape(' --set '.join(hint.assignments))}: {escape(hint.reason)}",
            soft_wrap=True,
        )
    if plan.audit:
        console.print()
        show_audit(plan.audit, console)
    _show_power(plan, console)
    for number, sample in enumerate(plan.samples, start=1):
        console.print(f"\n[dim]sample {number}; what is learned is [/][reverse]marked[/]")
        console.print(_marked(sample))
    if plan.missing_backbone:
        console.print(
            f"\n[yellow]Tokens, coverage and samples need the backbone.[/] "
            f"{escape(plan.missing_backbone)}",
            soft_wrap=True,
        )


def _show_forecast(forecast: Forecast, console: Console) -> None:
    if forecast.duration and forecast.probe:
        show_duration(forecast.duration, forecast.probe, console)
    show_estimate(forecast.memory, console)
    if forecast.on_a_gpu:
        show_on_a_gpu(forecast.on_a_gpu, console)
    if forecast.fits:
        return
    console.print(f"[red]This machine has {forecast.available / GB:.1f} GB.[/]")
    if forecast.advice:
        changes = " ".join(f"--set {change}" for change in forecast.advice.assignments)
        console.print(f"It would fit with {escape(changes)}", soft_wrap=True)


def _show_power(plan: Plan, console: Console) -> None:
    """What the suites can show, and what they were made to show."""
    console.print("\n[dim]what the suites can show (4 times out of 5)[/]")
    table = Table(box=None, pad_edge=False)
    for name in ("suite", "task", "items", "shows", "wanted", "needs", "assuming"):
        table.add_column(name, justify="right" if name in ("items", "needs") else "left")
    for suite in plan.suites:
        word = "a gain of" if suite.role == "gain" else "no loss of"
        for number, task in enumerate(suite.tasks):
            short = task.needed is not None and task.items is not None and task.needed > task.items
            needed = "" if task.needed is None else f"{task.needed:,}"
            table.add_row(
                escape(f"{suite.suite} ({suite.role})") if number == 0 else "",
                escape(task.task),
                "?" if task.items is None else f"{task.items:,}",
                "" if task.smallest is None else f"{word} {_amount(task.smallest, task.unit)}",
                "" if task.wanted is None else _amount(task.wanted, task.unit),
                f"[yellow]{needed}[/]" if short else needed,
                task.assumed or "unknown until measured",
            )
    console.print(table)


def _amount(value: float, unit: str) -> str:
    if is_percent(unit):
        return f"{100 * value:.2g} points"
    return f"{value:.2g} {unit}"


def _marked(sample: tuple[Span, ...]) -> Text:
    text = Text()
    for span in sample:
        text.append(span.text, style="reverse" if span.supervised else "")
    return text
