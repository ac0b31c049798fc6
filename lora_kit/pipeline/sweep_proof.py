"""Proof of a sweep's winner on half B, which no trial has seen, and its lead over the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.comparisons import compare, task_score, texts_to_judge
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.pairs import pair
from lora_kit.evaluation.suite import SuiteRole
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.trials import TrialMaker
from lora_kit.runs.directory import RunDirectory
from lora_kit.selection.sweep.choice import TrialChoice
from lora_kit.selection.sweep.record import Trial
from lora_kit.statistics.decisions import Decision, Interval
from lora_kit.statistics.looks import Looks

HALF_B = "half-b"


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
    """Verdict on the winner on half B.

    Attributes:
        run: run directory of the winner's adapter.
        verdict: its verdict on half B.
        too_good: gain on half A minus gain on half B by gain task: how much of the gain on half A
            is the luck of the choice, and chance.
        leads: lead over the recipe as it is, by task; empty if that is the winner, or was not
            trained to its end.
    """

    run: RunDirectory
    verdict: Verdict
    too_good: dict[str, float]
    leads: tuple[Lead, ...]


def prove(maker: TrialMaker, trials: Sequence[Trial], choice: TrialChoice) -> SweepProof:
    """Judge the winner, and the recipe as it is, on half B.

    Args:
        maker: maker of the trials.
        trials: all trials.
        choice: the winner.
    """
    by_number = {trial.number: trial for trial in trials}
    assert choice.chosen is not None
    winner = by_number[choice.chosen]
    default = next((one for one in trials if one.is_default and one.half_a), None)
    run, verdict = _judged(maker, winner)
    leads: tuple[Lead, ...] = ()
    if default is not None and not winner.is_default:
        leads = _leads(maker, _judged(maker, default)[0], run)
    assert winner.half_a is not None
    on_a = {f"{s.suite}/{t.task}": t for s, t in winner.half_a.tasks if s.role == "gain"}
    too_good = {
        name: on_a[name].interval.delta - task.interval.delta
        for suite, task in verdict.tasks
        if (name := f"{suite.suite}/{task.task}") in on_a
    }
    return SweepProof(run, verdict, too_good, leads)


def _judged(maker: TrialMaker, trial: Trial) -> tuple[RunDirectory, Verdict]:
    run = RunDirectory(maker.directory / trial.runs[trial.best_seed])
    return run, maker.evaluated(run, run.load_recipe(), maker.halves.b, HALF_B)


def _leads(maker: TrialMaker, default: RunDirectory, winner: RunDirectory) -> tuple[Lead, ...]:
    before, after = (Ledger(run.root / HALF_B / LEDGER) for run in (default, winner))
    leads = []
    for suite in maker.suites:
        for task in suite.tasks:
            name, texts = f"{suite.name}/{task.name}", texts_to_judge(task)
            entries = [
                ledger.arms(suite.name, task.name, texts)[ADAPTER_ARM] for ledger in (before, after)
            ]
            pairs = pair(*entries, task, name)
            whole = Looks.fixed(suite.alpha / 2).look(1)
            found = compare(pairs, task.model_copy(update={"margin": None}), whole)
            leads.append(
                Lead(
                    name,
                    suite.role,
                    task.unit,
                    task_score(pairs.before, task),
                    task_score(pairs.after, task),
                    found.interval,
                    found.p,
                    found.decision,
                )
            )
    return tuple(leads)
