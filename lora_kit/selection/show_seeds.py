"""Print the verdict on a recipe to the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.evaluation.reporting.show import STYLE
from lora_kit.selection.seeds import RecipeVerdict


def show_recipe_verdict(verdict: RecipeVerdict, console: Console) -> None:
    """Print the effect of a recipe on each task, and the spread between its seeds."""
    count = len(verdict.seeds)
    table = Table(
        box=None, pad_edge=False, title=f"The recipe, over {count} seeds", title_justify="left"
    )
    for name in ("task", "base", "difference", "interval", "margin", "each seed", "spread", ""):
        table.add_column(name, justify="left" if name in ("task", "") else "right")
    for one in verdict.tasks:
        interval, effect = one.effect.interval, one.effect
        table.add_row(
            escape_terminal(f"{one.suite}/{one.task} ({one.unit})"),
            f"{one.base:.3f}",
            f"{interval.delta:+.3f}",
            f"{interval.low:+.3f} to {interval.high:+.3f}",
            "" if one.margin is None else f"{one.margin:g}",
            " ".join(f"{value:+.3f}" for value in effect.by_seed),
            f"{effect.deviation:.3f}",
            f"[{STYLE[one.decision]}]{one.decision}[/]",
        )
    console.print(table)
    for one in verdict.tasks:
        remarks = [one.reason] if one.reason else []
        if one.missing:
            remarks.append(f"{one.missing} items without a score with the base or a seed")
        if remarks:
            name = escape_terminal(f"{one.suite}/{one.task}")
            console.print(f"{name}: {escape_terminal('; '.join(remarks))}", highlight=False)
    console.print(
        "Intervals hold for the recipe: other seeds, on other items. Spread: standard deviation "
        "between seeds, beyond the noise of the items.",
        highlight=False,
    )
    console.print(f"Recipe: [{STYLE[verdict.decision]}]{verdict.decision}[/]")
