"""Judging: from the ledger to the verdict on the adapter, against base and baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lora_kit.evaluation import diagnostics
from lora_kit.evaluation.ledger import DRIFT, Entry
from lora_kit.evaluation.ledger_view import LedgerView
from lora_kit.evaluation.merged_selection import select_merged_arm
from lora_kit.evaluation.pairs import Entries, Pairs, mean_score, pair
from lora_kit.evaluation.suite import Suite, TaskSpec
from lora_kit.evaluation.verdict import (
    BASELINES,
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
    Decision,
    PairedComparison,
    combine_decisions,
    loss_p,
    non_inferiority,
    superiority,
)
from lora_kit.statistics.labels import compare_macro_f1, label_scores

ALARM_ALPHA = 0.05


def judge(view: LedgerView, suites: Sequence[Suite]) -> Verdict:
    """Judge arm `adapter` against arm `base` on every task, then merged models and baselines.

    The results of one task at a time are in memory if they come from a ledger on disk.

    Raises:
        EvaluationError: if a task has no item with a score in both arms.
    """
    judged = tuple(_judge_suite(suite, view) for suite in suites)
    ships, judged = select_merged_arm(_with_alarms(judged))
    merged = [task.merged for suite in judged for task in suite.tasks if task.merged]
    return Verdict(
        combine_decisions([suite.decision for suite in judged]),
        combine_decisions(merged) if merged else None,
        ships,
        tuple(finding for suite in judged for finding in _findings(suite)),
        judged,
    )


def _judge_suite(suite: Suite, view: LedgerView) -> SuiteVerdict:
    tasks = []
    for task in suite.tasks:
        # Scores by label need the texts of the labels.
        by_label = task.kind == "classification" or task.score == "macro_f1"
        texts = ("output", "reference") if by_label else ()
        tasks.append(_judge_task(suite, task, view.arms(suite.name, task.name, texts)))
    decision = combine_decisions([task.decision for task in tasks])
    return SuiteVerdict(suite.name, suite.role, suite.description, decision, tuple(tasks))


def _judge_task(suite: Suite, task: TaskSpec, arms: Mapping[str, Entries]) -> TaskVerdict:
    where = f"{suite.name}/{task.name}"
    base, adapter = arms.get("base", {}), arms.get("adapter", {})
    pairs = pair(base, adapter, task, where)
    comparison = _compare(pairs, suite, task)
    decision, reason = _decide(pairs, comparison, task)
    confidence = comparison.interval.confidence
    return TaskVerdict(
        task=task.name,
        unit=task.unit,
        higher_is_better=task.higher_is_better,
        decision=decision,
        reason=reason,
        base=_task_score(pairs.before, task),
        adapter=_task_score(pairs.after, task),
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
        merges=tuple(_judge_merged(suite, task, arms)),
        baselines=_compare_baselines(suite, task, arms, adapter),
        measures=diagnostics.secondary_metrics(pairs, task, confidence),
        slices=diagnostics.slice_results(pairs, confidence),
        calibration=diagnostics.choice_calibration(pairs, confidence),
        classes=diagnostics.class_scores(pairs, task),
        drift=diagnostics.mean_drift(arms.get(DRIFT, {})),
    )


def _judge_merged(
    suite: Suite, task: TaskSpec, arms: Mapping[str, Entries]
) -> Iterator[MergedTask]:
    """Yield the comparison of each merged model with the base and with the first merged model."""
    where = f"{suite.name}/{task.name}"
    present = [arm for arm in MERGED_ARMS if arm in arms]
    for arm in present:
        pairs = pair(arms.get("base", {}), arms[arm], task, where)
        comparison = _compare(pairs, suite, task)
        decision = _decide(pairs, comparison, task)[0]
        lead = lead_p = None
        if arm != present[0]:
            with_first = pair(arms[present[0]], arms[arm], task, where)
            leading = _compare(with_first, suite, task.model_copy(update={"margin": None}))
            lead, lead_p = leading.interval, leading.p
        mean = _task_score(pairs.after, task)
        yield MergedTask(arm, decision, mean, comparison.interval, lead, lead_p)


def _compare(pairs: Pairs, suite: Suite, task: TaskSpec) -> PairedComparison:
    """Test for superiority without a margin, for non-inferiority with one."""
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


def _decide(pairs: Pairs, comparison: PairedComparison, task: TaskSpec) -> tuple[Decision, str]:
    """Return the decision, and the reason if it differs from the comparison's."""
    if pairs.binary and task.margin is not None and task.margin >= 1:
        return "INCONCLUSIVE", (
            f"every score is 0 or 1, so no loss could exceed the margin of {task.margin:g}"
        )
    if comparison.decision != "PASS":
        return comparison.decision, ""
    if pairs.lost_scores:
        # The items without a score may be those on which the adapter breaks down.
        return "INCONCLUSIVE", "the adapter has no score on items on which the base has one"
    if not pairs.binary and np.ptp(pairs.differences) == 0 and pairs.differences[0] != 0:
        return "INCONCLUSIVE", "all differences are equal: no spread to estimate an interval from"
    if task.margin is not None and pairs.binary and task.higher_is_better:
        room = _task_score(pairs.before, task) - _chance_level(pairs, task)
        if room <= task.margin:
            return "INCONCLUSIVE", (
                f"the base is only {room:.1%} above guessing, less than the margin, so a loss "
                "could not be detected"
            )
    return "PASS", ""


def _chance_level(pairs: Pairs, task: TaskSpec) -> float:
    """Return the expected score of guessing: 1 / number of choices, or 0 without choices."""
    if task.score == "macro_f1":
        return 1 / len({entry.reference for entry in pairs.before})
    counts = [len(entry.choices) for entry in pairs.before]
    return float(np.mean([1 / count if count else 0.0 for count in counts]))


def _task_score(entries: Sequence[Entry], task: TaskSpec) -> float:
    if task.score == "macro_f1":
        return label_scores(
            [entry.output for entry in entries], [entry.reference for entry in entries]
        ).macro_f1
    return mean_score(entries)


def _compare_baselines(
    suite: Suite, task: TaskSpec, arms: Mapping[str, Entries], adapter: Entries
) -> tuple[BaselineComparison, ...]:
    comparisons = []
    for arm in BASELINES:
        if arm not in arms or suite.role != "gain":
            continue
        try:
            pairs = pair(arms[arm], adapter, task, f"{suite.name}/{task.name}, {arm}")
        except EvaluationError:
            continue  # the baseline has no score in common with the adapter
        comparison = _compare(pairs, suite, task)
        comparisons.append(
            BaselineComparison(
                arm,
                _task_score(pairs.before, task),
                comparison.interval,
                comparison.p,
                comparison.decision,
            )
        )
    return tuple(comparisons)


def _with_alarms(suites: tuple[SuiteVerdict, ...]) -> tuple[SuiteVerdict, ...]:
    """Set the alarms of all tasks and slices, after Holm over their losses."""
    tasks = [task for suite in suites for task in suite.tasks]
    slices, adjusted = diagnostics.mark_alarms(
        [task.slices for task in tasks], [task.loss_p for task in tasks], ALARM_ALPHA
    )
    marked = iter(
        replace(task, slices=of_task, loss_adjusted=value, alarm=value <= ALARM_ALPHA)
        for task, of_task, value in zip(tasks, slices, adjusted, strict=True)
    )
    return tuple(replace(suite, tasks=tuple(next(marked) for _ in suite.tasks)) for suite in suites)


def _findings(suite: SuiteVerdict) -> list[Finding]:
    findings = []
    for task in suite.tasks:
        findings += [
            _baseline_finding(suite.suite, task, baseline)
            for baseline in task.baselines
            if baseline.decision != "PASS"
        ]
        where = [f"{one.field} {one.value}" for one in task.slices if one.alarm]
        if task.alarm:
            where = ["the whole task", *where]
        if where:
            text = f"{task.task} got significantly worse (after Holm) on {', '.join(where)}"
            findings.append(Finding("alarm", suite.suite, task.task, text))
    return findings


def _baseline_finding(suite: str, task: TaskVerdict, baseline: BaselineComparison) -> Finding:
    name, description = BASELINES[baseline.arm]
    described = f"{description} ({baseline.arm})"
    if baseline.decision == "FAIL":
        # The interval of the difference excludes zero, in favour of the baseline.
        text = f"{described[0].upper()}{described[1:]} is better than the adapter on {task.task}"
        return Finding("negative transfer", suite, task.task, text)
    kind = f"no advantage over {name} shown"
    text = f"The adapter is not shown to be better on {task.task} than {described}"
    return Finding(kind, suite, task.task, text)
