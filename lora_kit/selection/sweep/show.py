"""Print a sweep to the terminal."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.evaluation.reporting.notation import format_p_value
from lora_kit.evaluation.reporting.show import show_verdict
from lora_kit.selection.sweep.outcome import ordered_trials, trial_outcomes
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import WINNER, Lead, SweepResult
from lora_kit.selection.sweep.sentences import (
    LEAD_WORDS,
    choice_sentence,
    earlier_winners,
    formatted_lead,
    lead_sentence,
    proof_sentence,
)


def show_sweep(result: SweepResult, console: Console) -> None:
    """Print the trials, the choice, the winner's proof and its lead, and the next command."""
    console.print(_trials(result))
    console.print(escape_terminal(choice_sentence(result)), highlight=False)
    if result.proof is None:
        console.print(proof_sentence(result))
        return
    seen = earlier_winners(result) if result.proved_before else "no trial"
    console.print(f"\nHalf B, which {seen} had seen")
    show_verdict(result.proof.verdict, console)
    if result.proof.leads:
        console.print()
        console.print(_leads(result.proof.leads))
    else:
        console.print(escape_terminal(lead_sentence(result)), highlight=False)
    # Commands are copied, so that they are not wrapped.
    for line in _next(result, result.proof.run):
        console.print(escape_terminal(line), highlight=False, soft_wrap=True)


def _trials(result: SweepResult) -> Table:
    table = Table(box=None, pad_edge=False, title="Half A", title_justify="left")
    outcomes = trial_outcomes(result.trials, result.choice)
    unit = next((f", {one.gain_unit}" for one in outcomes.values()), "")
    table.add_column("trial", justify="right")
    for name in ("values", f"gain{unit}", "most forgotten, % of margin", "retention"):
        table.add_column(escape_terminal(name), overflow="fold")
    table.add_column("minutes", justify="right")
    table.add_column("")
    for trial in ordered_trials(result):
        one = outcomes.get(trial.number)
        cells = ["", "", trial.status]
        if one is not None:
            cells = [
                _interval(one.gain_text),
                f"{one.most_forgotten} {_interval(one.forgotten_text)}",
                "kept" if trial.keeps_retention else "not shown",
            ]
        remark = "winner" if trial.number == result.choice.chosen else trial.reason
        cells = [str(trial.number), _values(trial), *cells, f"{trial.seconds / 60:.1f}", remark]
        table.add_row(*map(escape_terminal, cells))
    return table


def _interval(texts: tuple[str, str, str]) -> str:
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def _values(trial: Trial) -> str:
    return "as the recipe is" if trial.is_default else trial.name


def _leads(leads: tuple[Lead, ...]) -> Table:
    title = "Lead over the default recipe, half B"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("task", "default", "winner", "difference", "interval", "p", "winner is"):
        table.add_column(name, justify="left" if name in ("task", "winner is") else "right")
    for lead in leads:
        values = formatted_lead(lead)
        cells = (
            f"{lead.name} ({values.unit})",
            values.before,
            values.after,
            values.delta,
            f"{values.low} to {values.high}",
            format_p_value(lead.p),
            LEAD_WORDS[lead.decision],
        )
        table.add_row(*map(escape_terminal, cells))
    return table


def _next(result: SweepResult, run: str) -> list[str]:
    recipe = shlex.quote(str(result.directory / WINNER))
    adapter = shlex.quote(str(result.directory / run))
    if result.decision != "PASS":
        return [
            f"The winner is not proved. Its recipe is {recipe}, its adapter is in {adapter}.",
        ]
    return [
        f"Merge the proved adapter: lora-kit merge {adapter}",
        f"Train its recipe anew: lora-kit run {recipe}",
    ]
