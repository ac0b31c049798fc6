"""The plan on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lora_kit.preflight.plan import Plan, Span


def show_plan(plan: Plan, console: Console) -> None:
    """Print what the recipe would do."""
    recipe = plan.recipe
    spec = recipe.training
    console.print(f"[bold]{escape(recipe.name)}[/]")
    table = Table.grid(padding=(0, 2))
    facts = {
        "backbone": f"{recipe.backbone.model}, {recipe.backbone.quantization}",
        "adapter": f"{recipe.adapter.method}, rank {recipe.adapter.rank}",
        "training": f"{plan.optimizer_steps} steps of {spec.batch_size} examples "
        f"({plan.micro_batch_size} a forward pass), {spec.epochs:g} epochs, "
        f"learning rate {spec.learning_rate:g}, {spec.schedule}",
        "rows": f"{plan.rows} for training, {plan.validation_rows} held out",
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
    for suite in plan.suites:
        facts[f"suite {suite.suite}"] = f"{suite.role}: " + ", ".join(
            name if items < 0 else f"{items} {name}" for name, items in suite.items.items()
        )
    for name, value in facts.items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(table)
    for number, sample in enumerate(plan.samples, start=1):
        console.print(f"\n[dim]sample {number}; what is learned is [/][reverse]marked[/]")
        console.print(_marked(sample))
    if plan.missing_backbone:
        console.print(
            f"\n[yellow]Tokens, coverage and samples need the backbone.[/] "
            f"{escape(plan.missing_backbone)}",
            soft_wrap=True,
        )


def _marked(sample: tuple[Span, ...]) -> Text:
    text = Text()
    for span in sample:
        text.append(span.text, style="reverse" if span.supervised else "")
    return text
