"""Proof of a sweep's winner on half B, which no trial has seen, and its lead over the defaults."""

from __future__ import annotations

from collections.abc import Sequence

from lora_kit.evaluation.assembly import LEDGER
from lora_kit.evaluation.comparisons import compare, task_score, texts_to_judge
from lora_kit.evaluation.ledger import Ledger
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.pairs import Entries, pair
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.verdict import Verdict
from lora_kit.pipeline.trials import TrialMaker
from lora_kit.runs.directory import HALF_B, RunDirectory
from lora_kit.selection.sweep.record import Trial
from lora_kit.selection.sweep.result import Lead, SweepProof
from lora_kit.statistics.looks import Looks


def prove(maker: TrialMaker, trials: Sequence[Trial], winner: Trial) -> SweepProof:
    """Judge the winner, and the recipe as it is, on half B.

    Args:
        maker: maker of the trials.
        trials: all trials.
        winner: the winner on half A.
    """
    assert winner.half_a is not None
    run, verdict = _judged(maker, winner)
    default = next((one for one in trials if one.is_default and one.half_a), None)
    leads: tuple[Lead, ...] = ()
    if default is not None and not winner.is_default:
        before, _ = _judged(maker, default)
        leads = tuple(
            lead(suite, task, _entries(before, suite, task), _entries(run, suite, task))
            for suite in maker.items.suites
            for task in suite.tasks
        )
    on_a = {f"{suite.suite}/{task.task}": task for suite, task in winner.half_a.tasks}
    too_good = {
        name: on_a[name].interval.delta - task.interval.delta
        for suite, task in verdict.tasks
        if suite.role == "gain"
        for name in [f"{suite.suite}/{task.task}"]
        # The mean over seeds is of items, which have another score than all of them together.
        if on_a[name].unit == task.unit
    }
    return SweepProof(winner.runs[winner.best_seed], verdict, too_good, leads)


def _judged(maker: TrialMaker, trial: Trial) -> tuple[RunDirectory, Verdict]:
    run = RunDirectory(maker.directory / trial.runs[trial.best_seed])
    return run, maker.items.evaluated(run, run.load_recipe(), maker.items.halves.b, HALF_B)


def _entries(run: RunDirectory, suite: Suite, task: TaskSpec) -> Entries:
    ledger = Ledger(run.root / HALF_B / LEDGER)
    return ledger.arms(suite.name, task.name, texts_to_judge(task))[ADAPTER_ARM]


def lead(suite: Suite, task: TaskSpec, before: Entries, after: Entries) -> Lead:
    """Compare two adapters on a task.

    Args:
        suite: suite of the task.
        task: the task.
        before: results of the recipe as it is.
        after: results of the winner, on the same items.

    Raises:
        EvaluationError: if no item has a score in both.
    """
    name = f"{suite.name}/{task.name}"
    pairs = pair(before, after, task, name)
    whole = Looks.fixed(suite.alpha / 2).look(1)
    found = compare(pairs, task.model_copy(update={"margin": None}), whole)
    return Lead(
        name,
        suite.role,
        task.unit,
        task_score(pairs.before, task),
        task_score(pairs.after, task),
        found.interval,
        found.p,
        found.decision,
    )
