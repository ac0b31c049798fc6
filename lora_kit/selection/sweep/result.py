"""Result of a sweep: all trials, the winner on half A, and its proof on half B."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_kit.evaluation.gain_choice import most_forgotten_task
from lora_kit.evaluation.suite import SuiteRole
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.runtime.files import finite
from lora_kit.selection.sweep.choice import TrialChoice
from lora_kit.selection.sweep.record import Trial
from lora_kit.statistics.decisions import Decision, Interval

# File of the winner's recipe, in the directory of the sweep.
WINNER = "winner.yaml"


@dataclass(frozen=True)
class Lead:
    """Lead of the winner over the recipe as it is, on one task of half B.

    Attributes:
        name: suite and task.
        role: role of the suite.
        unit: unit of the scores.
        default: mean score of the recipe as it is.
        winner: mean score of the winner.
        interval: interval of the paired difference, positive where the winner is better.
        p: two-sided p-value of no difference.
        decision: PASS if the winner is significantly better, FAIL if it is worse.
    """

    name: str
    role: SuiteRole
    unit: str
    default: float
    winner: float
    interval: Interval
    p: float
    decision: Decision


@dataclass(frozen=True)
class SweepProof:
    """Proof of the winner on half B.

    Attributes:
        run: run directory of the winner's adapter, relative to the sweep's.
        verdict: verdict on that adapter, on half B.
        too_good: gain on half A minus gain on half B by gain task: luck of the choice, and chance.
        leads: lead over the recipe as it is, by task; empty if that is the winner itself, or was
            given up.
    """

    run: str
    verdict: Verdict
    too_good: dict[str, float]
    leads: tuple[Lead, ...]


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        name: name of the recipe.
        directory: directory of the sweep.
        trials: all trials that have ended, by their numbers.
        choice: winner on half A.
        proof: proof on half B; `None` if no trial qualifies.
        items: number of items in half A and in half B, by task.
        facts: facts of the sweep, such as the sampler, by name.
        defaults: values of the searched fields in the recipe as it is, as YAML.
        proved_before: numbers of other trials that were winners, and were judged on half B, before
            the sweep was continued.
    """

    name: str
    directory: Path
    trials: tuple[Trial, ...]
    choice: TrialChoice
    proof: SweepProof | None
    items: dict[str, tuple[int, int]]
    facts: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    proved_before: tuple[int, ...] = ()

    @property
    def decision(self) -> Decision:
        """Decision on half B; FAIL if no trial qualifies."""
        return self.proof.verdict.decision if self.proof else "FAIL"

    @property
    def winner(self) -> Trial | None:
        """Winner; `None` if no trial qualifies."""
        return next((one for one in self.trials if one.number == self.choice.chosen), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON; infinite limits are null."""
        found = self.proof
        result = {
            "recipe": self.name,
            "decision": self.decision,
            "winner": None if self.winner is None else _trial(self.winner),
            "reason": self.choice.reason,
            "items": {task: {"a": a, "b": b} for task, (a, b) in self.items.items()},
            "trials": [_trial(one) for one in self.trials],
            "half_b": None
            if found is None
            else {
                "run": found.run,
                "verdict": found.verdict.to_dict(),
                "half_a_minus_half_b": found.too_good,
                "against_default": [asdict(lead) for lead in found.leads],
            },
            "facts": self.facts,
            "defaults": self.defaults,
            "proved_before": list(self.proved_before),
        }
        value: dict[str, Any] = finite(result)
        return value


def _trial(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "values": dict(trial.values),
        "is_default": trial.is_default,
        "status": trial.status,
        "reason": trial.reason,
        "seconds": round(trial.seconds, 1),
        "runs": list(trial.runs),
        "validation": dict(trial.validation),
    }
    if trial.half_a is not None:
        row["keeps_retention"] = trial.keeps_retention
        row["most_forgotten"] = most_forgotten_task(trial.half_a)[0]
        row["half_a"] = {
            f"{suite.suite}/{task.task}": _difference(task) for suite, task in trial.half_a.tasks
        }
    return row


def _difference(task: TaskVerdict) -> dict[str, Any]:
    interval = task.interval
    return {
        "difference": interval.delta,
        "low": interval.low,
        "high": interval.high,
        "decision": task.decision,
    }
