"""Sentences on the result of a sweep, without markup."""

from __future__ import annotations

from lora_kit.evaluation.reporting.answers import summary_sentence
from lora_kit.evaluation.reporting.notation import FormattedComparison
from lora_kit.selection.sweep.result import Lead, SweepResult
from lora_kit.statistics.decisions import Decision

LEAD_WORDS: dict[Decision, str] = {
    "PASS": "better",
    "FAIL": "worse",
    "INCONCLUSIVE": "undecided",
}


def choice_sentence(result: SweepResult) -> str:
    """Return the reason of the choice on half A."""
    reason = result.choice.reason
    return f"{reason[:1].upper()}{reason[1:]}."


def proof_sentence(result: SweepResult) -> str:
    """Return the reason of the decision on half B."""
    if result.proof is None:
        return "No trial qualifies, so half B was not used and no recipe is written."
    return f"On half B, which no trial has seen: {summary_sentence(result.proof.verdict)}"


def lead_sentence(result: SweepResult) -> str:
    """Return the winner's lead over the default recipe; empty if no trial qualifies."""
    if result.proof is None or result.winner is None:
        return ""
    if result.winner.is_default:
        return "The default recipe has won: no other trial that keeps retention gains more."
    leads = [lead for lead in result.proof.leads if lead.role == "gain"]
    if not leads:
        return "The default recipe was not judged on half A, so no lead over it is known."
    return f"Lead over the default recipe on half B: {'; '.join(map(_lead, leads))}."


def _lead(lead: Lead) -> str:
    values = formatted_lead(lead)
    word = LEAD_WORDS[lead.decision]
    return f"{lead.name} {values.delta} {values.unit} ({values.low} to {values.high}), {word}"


def formatted_lead(lead: Lead) -> FormattedComparison:
    """Return the scores of a lead and their difference as they are written."""
    return FormattedComparison.of(lead.unit, lead.default, lead.winner, lead.interval)
