"""Choice of the winner among trials, and when a trial is not worth more items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.evaluation.gain_choice import (
    GAIN_DECIMALS,
    Gain,
    most_forgotten_task,
    role_tasks,
    standardized_gains,
)
from lora_kit.evaluation.verdict import Verdict
from lora_kit.selection.sweep.record import Trial


@dataclass(frozen=True)
class TrialChoice:
    """Winner of a sweep, on half A.

    Attributes:
        chosen: number of the winner; `None` if no trial qualifies.
        reason: reason of the choice, in words.
        gains: gain of each complete trial by its number, see `standardized_gains`.
    """

    chosen: int | None
    reason: str
    gains: dict[int, Gain]


def choose_trial(trials: Sequence[Trial]) -> TrialChoice:
    """Choose the trial with the largest gain of those that keep all retention tasks.

    Of equal gains the earlier trial wins, so that nothing replaces the recipe as it is for nothing.
    """
    complete = [trial for trial in trials if trial.half_a is not None]
    verdicts = [trial.half_a for trial in complete if trial.half_a is not None]
    if not complete:
        return TrialChoice(None, "no trial was judged on half A", {})
    numbers = [trial.number for trial in complete]
    gains = dict(zip(numbers, standardized_gains(verdicts), strict=True))
    kept = [trial for trial in complete if trial.keeps_retention]
    if not kept:
        reason = "no trial is shown to keep all retention tasks within their margins on half A"
        return TrialChoice(None, reason, gains)

    def preference(trial: Trial) -> tuple[float, int]:
        return round(gains[trial.number].value, GAIN_DECIMALS), -trial.number

    best = max(kept, key=preference)
    if round(gains[best.number].value, GAIN_DECIMALS) <= 0:
        reason = f"none of the {len(kept)} trials that keep retention gains on half A"
        return TrialChoice(None, reason, gains)
    reason = (
        f"{len(kept)} of {len(complete)} judged trials are shown to keep retention on half A; of "
        f"these, trial {best.number} ({best.name}) gains most"
    )
    return TrialChoice(best.number, reason, gains)


def objective(verdict: Verdict, first: Verdict) -> float:
    """Return the value that the sampler maximizes: the gain on half A.

    In the unit of the task, or, of several tasks, in half-widths of the first trial's intervals:
    by its own, a trial would lose by the noise of a larger gain.

    Args:
        verdict: verdict of the trial.
        first: verdict of the first trial that was judged.
    """
    tasks = [task.interval for _, task in role_tasks(verdict, "gain")]
    if len(tasks) == 1:
        return tasks[0].delta
    units = [task.interval for _, task in role_tasks(first, "gain")]
    widths = [(one.high - one.low) / 2 for one in units]
    gains = [
        one.delta / width
        for one, width in zip(tasks, widths, strict=True)
        if np.isfinite(width) and width > 0
    ]
    return float(np.mean(gains)) if gains else 0.0


def retention_constraint(verdict: Verdict) -> float:
    """Return a number that is above 0 where retention is not shown to be kept.

    It is the share of its margin that the most forgotten task uses up in the worst case, less 1.
    """
    return float(np.clip(most_forgotten_task(verdict)[1].margin_used[2] - 1, -10, 10))


def hopeless(first: Verdict, best: Verdict | None) -> str:
    """Return why a trial is not judged on all of half A, after few of its items; empty if it is.

    Args:
        first: verdict on few items.
        best: verdict on half A of the best trial so far; `None` without one.
    """
    failed = [name for name, task in role_tasks(first, "retention") if task.decision == "FAIL"]
    if failed:
        return f"few items show more forgetting than the margin ({', '.join(failed)})"
    if best is None:
        return ""
    pairs = zip(role_tasks(first, "gain"), role_tasks(best, "gain"), strict=True)
    if all(own.interval.high < other.interval.delta for (_, own), (_, other) in pairs):
        return "few items show less gain than the best trial has"
    return ""
