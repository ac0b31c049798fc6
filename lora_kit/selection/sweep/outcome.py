"""Outcomes of trials on half A for the page and the terminal: gain, forgetting, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.gain_choice import most_forgotten_task, role_tasks
from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import Notation, is_percent
from lora_kit.selection.sweep.choice import TrialChoice
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import SweepResult
from lora_kit.statistics.decisions import Decision, combine_decisions

# A value with the limits of its interval: value, lower and upper limit.
Limits = tuple[float, float, float]
SHARE = Notation(percent=True, places=0)
HALF_WIDTHS = "interval half-widths"
PRUNED, REFUSED = 2, 3
"""Ranks of trials that are not judged in the order of the tables."""


@dataclass(frozen=True)
class TrialOutcome:
    """Outcome of a complete trial on half A.

    Attributes:
        trial: the trial.
        gain: gain on the single gain task, in the unit of its scores, or on several, in half-widths
            of their intervals.
        gain_text: the gain as it is written, with its limits.
        gain_unit: unit of the gain as it is written.
        by_task: gain on each task as it is written, if there are several.
        forgotten: share of the margin that the most forgotten task uses up, with its best and its
            worst case.
        forgotten_text: the shares in percent.
        most_forgotten: suite and task of the most forgotten task.
        margin: margin of that task, with unit.
        retention: decision over all retention tasks.
    """

    trial: Trial
    gain: Limits
    gain_text: tuple[str, str, str]
    gain_unit: str
    by_task: str
    forgotten: Limits
    forgotten_text: tuple[str, str, str]
    most_forgotten: str
    margin: str
    retention: Decision

    @property
    def gain_sentence(self) -> str:
        """Gain with unit and interval, on one line."""
        value, low, high = self.gain_text
        return f"{value} {self.gain_unit} ({low} to {high})"


def trial_outcomes(trials: Sequence[Trial], choice: TrialChoice) -> dict[int, TrialOutcome]:
    """Return the outcome of each complete trial, by its number."""
    return {one.number: _outcome(one, choice) for one in trials if one.half_a is not None}


def _outcome(trial: Trial, choice: TrialChoice) -> TrialOutcome:
    assert trial.half_a is not None
    gains = [(name, Difference.of(name, task)) for name, task in role_tasks(trial.half_a, "gain")]
    if len(gains) == 1:
        found = gains[0][1]
        interval = found.task.interval
        gain = (interval.delta, interval.low, interval.high)
        text, unit, by_task = (found.delta, found.low, found.high), found.unit, ""
    else:
        mean = choice.gains[trial.number]
        gain, signed = (mean.value, mean.low, mean.high), Notation(percent=False, places=2).signed
        text, unit = (signed(mean.value), signed(mean.low), signed(mean.high)), HALF_WIDTHS
        by_task = ", ".join(f"{name} {one.delta} {one.unit}" for name, one in gains)
    name, worst = most_forgotten_task(trial.half_a)
    used, margin = worst.margin_used, Difference.of(name, worst)
    return TrialOutcome(
        trial=trial,
        gain=gain,
        gain_text=text,
        gain_unit=unit,
        by_task=by_task,
        forgotten=used,
        forgotten_text=(SHARE.plain(used[0]), SHARE.plain(used[1]), SHARE.plain(used[2])),
        most_forgotten=name,
        margin=f"{margin.margin} {margin.unit}",
        retention=combine_decisions(
            [task.decision for _, task in role_tasks(trial.half_a, "retention")]
        ),
    )


def gain_is_percent(trials: Sequence[Trial]) -> bool:
    """Return true if gains are fractions, which are written in percentage points."""
    verdicts = [trial.half_a for trial in trials if trial.half_a is not None]
    tasks = role_tasks(verdicts[0], "gain") if verdicts else []
    return len(tasks) == 1 and is_percent(tasks[0][1].unit)


def ordered_trials(result: SweepResult) -> list[Trial]:
    """Return the trials for tables: the winner, then those that keep retention, by their gain.

    Other complete trials follow, by their gain, then the pruned and the refused ones.
    """
    outcomes = trial_outcomes(result.trials, result.choice)

    def place(trial: Trial) -> tuple[bool, int, float, int]:
        found = outcomes.get(trial.number)
        if found is None:
            rank = REFUSED if trial.status == "refused" else PRUNED
            return True, rank, 0.0, trial.number
        is_other = trial.number != result.choice.chosen
        return is_other, int(not trial.keeps_retention), -found.gain[0], trial.number

    return sorted(result.trials, key=place)


def trial_values(trial: Trial, result: SweepResult) -> dict[str, str]:
    """Return the values of the searched fields in a trial, as YAML."""
    return dict(result.defaults) if trial.is_default else dict(trial.values)


def searched_fields(result: SweepResult) -> list[str]:
    """Return the dotted names of all searched fields."""
    values = [trial_values(trial, result) for trial in result.trials]
    return list(dict.fromkeys(name for one in (result.defaults, *values) for name in one))


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted name; the whole name where that part is not unique."""
    last = [name.rpartition(".")[2] for name in fields]
    return {
        name: part if last.count(part) == 1 else name
        for name, part in zip(fields, last, strict=True)
    }
