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
    seen = "which no trial has seen"
    if result.proved_before:
        seen = f"which {earlier_winners(result)} {'has' if _is_one(result) else 'have'} seen before"
    return f"On half B, {seen}: {summary_sentence(result.proof.verdict)}"


def earlier_winners(result: SweepResult) -> str:
    """Return the trials that were winners before the sweep was continued, in words."""
    numbers = ", ".join(map(str, result.proved_before))
    return f"trial {numbers}" if _is_one(result) else f"trials {numbers}"


def _is_one(result: SweepResult) -> bool:
    return len(result.proved_before) == 1


def use_sentence(result: SweepResult) -> str:
    """Return how far the values on half B are free of the choice."""
    if not result.proved_before:
        return (
            "Half B was seen by no trial, so its values need no correction for the number of "
            "trials."
        )
    return (
        f"The sweep was continued after half B had judged {earlier_winners(result)}. Whoever goes "
        "on until a winner passes finds one by chance more often than the intervals say: prove "
        "this one on new items."
    )


def lead_sentence(result: SweepResult) -> str:
    """Return the winner's lead over the default recipe; empty if no trial qualifies."""
    if result.proof is None or result.winner is None:
        return ""
    if result.winner.is_default:
        others = [one for one in result.trials if not one.is_default]
        if others and all(one.status == "refused" for one in others):
            return (
                f"The default recipe was compared with nothing: all {len(others)} other trials "
                f"were refused ({others[0].reason})."
            )
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
