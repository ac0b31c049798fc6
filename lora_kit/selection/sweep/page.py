"""Page of a sweep (`sweep.html`): the winner, its proof, and all trials.

The page is self-contained and has no script. Names and values are untrusted, and escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment

from lora_kit.evaluation.gain_choice import role_tasks
from lora_kit.evaluation.reporting import report
from lora_kit.evaluation.reporting.escaping import template_environment
from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import (
    FormattedComparison,
    format_p_value,
    format_percent,
)
from lora_kit.runtime.files import write_text
from lora_kit.selection.sweep.outcome import (
    TrialOutcome,
    ordered_trials,
    searched_fields,
    short_names,
    trial_outcomes,
    trial_values,
)
from lora_kit.selection.sweep.parallel import build_parallel
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import WINNER, Lead, SweepResult
from lora_kit.selection.sweep.scatter import SCATTERS, build_scatter, role_of
from lora_kit.selection.sweep.sentences import (
    LEAD_WORDS,
    choice_sentence,
    formatted_lead,
    lead_sentence,
    proof_sentence,
    use_sentence,
)
from lora_kit.statistics.decisions import Decision

TEMPLATES = Path(__file__).parent
KEEPS: dict[Decision, str] = {"PASS": "yes", "FAIL": "no", "INCONCLUSIVE": "not shown"}


@dataclass(frozen=True)
class ProofRow:
    """Task of half B with its values on half A.

    Attributes:
        name: name of the task.
        suite: name of its suite.
        role: role of the suite.
        confidence: confidence level of the interval, such as 95%.
        values: formatted difference on half B.
        half_a: formatted difference on half A; `None` without it.
        too_good: gain on half A minus gain on half B; empty for retention.
    """

    name: str
    suite: str
    role: str
    confidence: str
    values: Difference
    half_a: Difference | None
    too_good: str


@dataclass(frozen=True)
class LeadRow:
    """Lead with its formatted values."""

    lead: Lead
    values: FormattedComparison
    confidence: str
    word: str


@dataclass(frozen=True)
class TrialRow:
    """Trial in the table of all trials.

    Attributes:
        trial: the trial.
        role: `winner`, `default`, or empty.
        values: values of the searched fields, by their short names.
        outcome: outcome on half A; `None` unless the trial is complete.
        keeps: answer to the question if the trial keeps retention; empty unless it is complete.
        losses: validation losses in their order.
        minutes: duration.
    """

    trial: Trial
    role: str
    values: tuple[tuple[str, str], ...]
    outcome: TrialOutcome | None
    keeps: str
    losses: str
    minutes: str


def write_page(path: Path, result: SweepResult) -> None:
    """Write the page of a sweep.

    Args:
        path: HTML file to write.
        result: result of the sweep.
    """
    fields = searched_fields(result)
    values = {
        "result": result,
        "use": use_sentence(result),
        "sentences": [choice_sentence(result), proof_sentence(result), lead_sentence(result)],
        "winner_file": WINNER,
        "proof": _proof_rows(result),
        "leads": [_lead_row(lead) for lead in result.proof.leads] if result.proof else [],
        "scatters": [build_scatter(result, layout) for layout in SCATTERS],
        "gain_tasks": _gain_tasks(result),
        "parallel": build_parallel(result),
        "rows": [_trial_row(one, result, short_names(fields)) for one in ordered_trials(result)],
        "fields": fields,
        "style": report.InlineAsset.read(report.TEMPLATES / "page" / "style.css"),
        "own_style": report.InlineAsset.read(TEMPLATES / "sweep.css"),
    }
    write_text(path, _environment().get_template("sweep.html.j2").render(values))


@cache
def _environment() -> Environment:
    environment = template_environment((TEMPLATES, report.TEMPLATES), None)
    environment.filters["p_value"] = format_p_value
    return environment


def _gain_tasks(result: SweepResult) -> list[str]:
    verdict = next((one.half_a for one in result.trials if one.half_a is not None), None)
    return [name for name, _ in role_tasks(verdict, "gain")] if verdict else []


def _proof_rows(result: SweepResult) -> list[ProofRow]:
    if result.proof is None:
        return []
    half_a = result.winner.half_a if result.winner else None
    on_a = {
        f"{suite.suite}/{task.task}": Difference.of(task.task, task)
        for suite, task in (half_a.tasks if half_a else [])
    }
    rows = []
    for suite, task in result.proof.verdict.tasks:
        values, name = Difference.of(task.task, task), f"{suite.suite}/{task.task}"
        too_good = result.proof.too_good.get(name)
        rows.append(
            ProofRow(
                name=task.task,
                suite=suite.suite,
                role=suite.role,
                confidence=format_percent(task.interval.confidence),
                values=values,
                half_a=on_a.get(name),
                too_good="" if too_good is None else values.notation.signed(too_good),
            )
        )
    return rows


def _lead_row(lead: Lead) -> LeadRow:
    confidence = format_percent(lead.interval.confidence)
    return LeadRow(lead, formatted_lead(lead), confidence, LEAD_WORDS[lead.decision])


def _trial_row(trial: Trial, result: SweepResult, names: dict[str, str]) -> TrialRow:
    outcome = trial_outcomes([trial], result.choice).get(trial.number)
    return TrialRow(
        trial=trial,
        role=role_of(trial, result),
        values=tuple((names[field], text) for field, text in trial_values(trial, result).items()),
        outcome=outcome,
        keeps=KEEPS[outcome.retention] if outcome else "",
        losses=" → ".join(f"{trial.validation[part]:.3f}" for part in sorted(trial.validation)),
        minutes=f"{trial.seconds / 60:.1f}",
    )
