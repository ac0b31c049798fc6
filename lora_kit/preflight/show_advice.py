"""Print advice in words."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from lora_kit.preflight.advice import Advice
from lora_kit.recipe.recipe import Recipe


def show_advice(advice: Advice, recipe: Recipe, console: Console) -> None:
    """Print what to train, why, what it is held against, and what was measured."""
    own = (
        "as this recipe does" if advice.own == advice.method else f"the recipe trains {advice.own}"
    )
    console.print(f"\n[bold]what to train:[/] {escape(advice.method)} [dim]({escape(own)})[/]")
    for reason in advice.reasons:
        source = f" [dim]({escape(reason.source)})[/]" if reason.source else ""
        console.print(f"- {escape(reason.text)}{source}", soft_wrap=True)
    missing = [arm for arm, _ in advice.baselines if arm not in recipe.evaluation.arms]
    if advice.baselines:
        named = "; ".join(f"{arm}, {text}" for arm, text in advice.baselines)
        add = f" Add {' and '.join(missing)} to evaluation.arms" if missing else ""
        console.print(f"- Held against: {escape(named)}.{escape(add)}", soft_wrap=True)
    for directory, method, decision in advice.measured:
        console.print(
            f"- Measured on the same rows: {escape(method)}, {decision} ({escape(directory)}), "
            "which counts more than these rules.",
            soft_wrap=True,
        )
    if not advice.measured:
        console.print(
            "- These are rules of thumb. Measured on your rows: lora-kit sweep RECIPE --over "
            f"adapter.method={escape(_alternatives(advice))}",
            soft_wrap=True,
        )


def _alternatives(advice: Advice) -> str:
    return ",".join(dict.fromkeys((advice.method, advice.own, "lora")))
