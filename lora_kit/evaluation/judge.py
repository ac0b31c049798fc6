"""From the ledger to the verdict: the adapter against the base, and against other ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lora_kit.evaluation import facets
from lora_kit.evaluation.ledger import DRIFT, Entry
from lora_kit.evaluation.pairs import Entries, Pairs, mean_score, pair
from lora_kit.evaluation.shipping import shipping
from lora_kit.evaluation.source import Source, source_of
from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.evaluation.verdict import (
    WAYS,
    BaselineComparison,
    Finding,
    MergedTask,
    SuiteVerdict,
    TaskVerdict,
    Verdict,
)
from lora_kit.recipe.sections import MERGED_ARMS
from lora_kit.runtime.errors import EvaluationError
from lora_kit.statistics.decisions import (
    Comparison,
    Decision,
    combined,
    loss_p,
    non_inferiority,
    superiority,
)
from lora_kit.statistics.labels import compare_macro_f1, label_scores

ALARM_ALPHA = 0.05


def judge(results: Source | Sequence[Entry], suites: Sequence[Suite]) -> Verdict:
    """Judge arm `adapter` against arm `base` on every task, and what else there is of arms.

    Of a ledger on disk one task's results are in memory at a time.

    Raises:
        EvaluationError: if a task has no item with a score in both arms.
    """
    source = source_of(results)
    judged = tuple(
        _judge_suite(
            suite,
            tuple(
                _judge_task(suite, task, source.arms(suite.name, task.name, _texts(task)))
                for task in suite.tasks
            ),
        )
        for suite in suites
    )
    ships, judged = shipping(_with_alarms(judged))
    merged = [task.merged for suite in judged for task in suite.tasks if task.merged]
    return Verdict(
        combined([suite.decision for suite in judged]),
        combined(merged) if merged else None,
        ships,
        tuple(finding for suite in judged for finding in _findings(suite)),
        judged,
    )


def _texts(task: TaskSpec) -> tuple[str, ...]:
    """Those that a task is judged by: labels, where there are any."""
    by_label = task.kind == "classification" or task.score == "macro_f1"
    return ("output", "reference") if by_label else ()


def _judge_suite(suite: Suite, tasks: tuple[TaskVerdict, ...]) -> SuiteVerdict:
    return SuiteVerdict(
        suite.name,
        suite.role,
        suite.description,
        combined([task.decision for task in tasks]),
        tasks,
    )


def _judge_task(suite: Suite, task: TaskSpec, arms: Mapping[str, Entries]) -> TaskVerdict:
    where = f"{suite.name}/{task.name}"
    base, adapter = arms.get("base", {}), arms.get("adapter", {})
    pairs = pair(base, adapter, task, where)
    comparison = _compare(pairs, suite, task)
    decision, reason = _decided(pairs, comparison, task)
    confidence = comparison.interval.confidence
    return TaskVerdict(
        task=task.name,
        unit=task.unit,
        higher_is_better=task.higher_is_better,
        decision=decision,
        reason=reason,
        base=_level(pairs.before, task),
        adapter=_level(pairs.after, task),
        interval=comparison.interval,
        p=comparison.p,
        method=comparison.method,
        margin=task.margin,
        rationale=task.rationale,
        missing=pairs.missing,
        won=pairs.won,
        lost=pairs.lost,
        items_needed=comparison.items_needed if decision == comparison.decision else None,
        loss_p=loss_p(pairs.differences, pairs.clusters, pairs.binary),
        loss_adjusted=1.0,
        alarm=False,
        merged=None,
        merged_interval=None,
        merges=tuple(_merges(suite, task, arms)),
        rivals=_rivals(suite, task, arms, adapter),
        measures=facets.measures(pairs, task, confidence),
        slices=facets.slices(pairs, confidence),
        calibration=facets.calibration(pairs, confidence),
        classes=facets.classes(pairs, task),
        drift=facets.drift(arms.get(DRIFT, {})),
    )


def _merges(suite: Suite, task: TaskSpec, arms: Mapping[str, Entries]) -> Iterator[MergedTask]:
    """Each merged model against the base, as the adapter is, and against the first of them."""
    where = f"{suite.name}/{task.name}"
    present = [arm for arm in MERGED_ARMS if arm in arms]
    for arm in present:
        pairs = pair(arms.get("base", {}), arms[arm], task, where)
        compared = _compare(pairs, suite, task)
        decision = _decided(pairs, compared, task)[0]
        lead = lead_p = None
        if arm != present[0]:
            beside = pair(arms[present[0]], arms[arm], task, where)
            found = _compare(beside, suite, task.model_copy(update={"margin": None}))
            lead, lead_p = found.interval, found.p
        level = _level(pairs.after, task)
        yield MergedTask(arm, decision, level, compared.interval, lead, lead_p)


def _compare(pairs: Pairs, suite: Suite, task: TaskSpec) -> Comparison:
    if task.score == "macro_f1":
        return compare_macro_f1(
            [entry.output for entry in pairs.before],
            [entry.output for entry in pairs.after],
            [entry.reference for entry in pairs.before],
            pairs.clusters,
            suite.alpha,
            task.margin,
        )
    if task.margin is None:
        return superiority(pairs.differences, pairs.clusters, suite.alpha, pairs.binary)
    return non_inferiority(
        pairs.differences, pairs.clusters, suite.alpha, task.margin, pairs.binary
    )


def _decided(pairs: Pairs, comparison: Comparison, task: TaskSpec) -> tuple[Decision, str]:
    """The decision, and why it is another one than the comparison's."""
    if pairs.binary and task.margin is not None and task.margin >= 1:
        return "INCONCLUSIVE", (
            f"every score is 0 or 1, so no loss could exceed the margin of {task.margin:g}"
        )
    if comparison.decision != "PASS":
        return comparison.decision, ""
    if pairs.lost_scores:
        # An adapter that breaks down on the items it is worst at must not pass without them.
        return "INCONCLUSIVE", "the adapter has no score on items on which the base has one"
    if not pairs.binary and np.ptp(pairs.differences) == 0 and pairs.differences[0] != 0:
        return "INCONCLUSIVE", "all differences are the same: there is no spread to judge them by"
    if task.margin is not None and pairs.binary and task.higher_is_better:
        room = _level(pairs.before, task) - _floor(pairs, task)
        if room <= task.margin:
            return "INCONCLUSIVE", (
                f"the base is only {room:.1%} above what guessing gives, less than the margin: "
                "it has nothing to lose here that could be seen"
            )
    return "PASS", ""


def _floor(pairs: Pairs, task: TaskSpec) -> float:
    """The score of guessing: one in the number of choices, 0 where there are none."""
    if task.score == "macro_f1":
        return 1 / len({entry.reference for entry in pairs.before})
    counts = [len(entry.choices) for entry in pairs.before]
    return float(np.mean([1 / count if count else 0.0 for count in counts]))


def _level(entries: Sequence[Entry], task: TaskSpec) -> float:
    """An arm's score on the task."""
    if task.score == "macro_f1":
        return label_scores(
            [entry.output for entry in entries], [entry.reference for entry in entries]
        ).macro_f1
    return mean_score(entries)


def _rivals(
    suite: Suite, task: TaskSpec, arms: Mapping[str, Entries], adapter: Entries
) -> tuple[BaselineComparison, ...]:
    found = []
    for arm in WAYS:
        if arm not in arms or suite.role != "gain":
            continue
        try:
            pairs = pair(arms[arm], adapter, task, f"{suite.name}/{task.name}, {arm}")
        except EvaluationError:
            continue  # a rival without a score beats nobody
        compared = _compare(pairs, suite, task)
        found.append(
            BaselineComparison(
                arm, _level(pairs.before, task), compared.interval, compared.p, compared.decision
            )
        )
    return tuple(found)


def _with_alarms(suites: tuple[SuiteVerdict, ...]) -> tuple[SuiteVerdict, ...]:
    """Holm over the losses of all tasks and slices."""
    tasks = [task for suite in suites for task in suite.tasks]
    parts, adjusted = facets.with_alarms(
        [task.slices for task in tasks], [task.loss_p for task in tasks], ALARM_ALPHA
    )
    raised = iter(
        replace(task, slices=part, loss_adjusted=value, alarm=value <= ALARM_ALPHA)
        for task, part, value in zip(tasks, parts, adjusted, strict=True)
    )
    return tuple(replace(suite, tasks=tuple(next(raised) for _ in suite.tasks)) for suite in suites)


def _findings(suite: SuiteVerdict) -> list[Finding]:
    found = []
    for task in suite.tasks:
        for rival in task.rivals:
            if rival.decision != "PASS":
                found.append(_finding(suite.suite, task, rival))
        where = [f"{one.field} {one.value}" for one in task.slices if one.alarm]
        if task.alarm:
            where = ["the whole task", *where]
        if where:
            text = f"{task.task} got worse for sure (after Holm) on {', '.join(where)}"
            found.append(Finding("alarm", suite.suite, task.task, text))
    return found


def _finding(suite: str, task: TaskVerdict, rival: BaselineComparison) -> Finding:
    better = rival.decision == "FAIL"
    relation = "is better than" if better else "is not shown to be worse than"
    text = f"{WAYS[rival.arm]} ({rival.arm}) {relation} the adapter on {task.task}"
    return Finding("negative transfer", suite, task.task, text[0].upper() + text[1:])
