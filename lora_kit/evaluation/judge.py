"""Judging: from the ledger to the verdict on the adapter, against base and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_kit.evaluation import diagnostics
from lora_kit.evaluation.arm_names import is_shipped
from lora_kit.evaluation.comparisons import (
    compare,
    items_to_decide,
    loss_p,
    task_score,
    texts_to_judge,
)
from lora_kit.evaluation.cut_answers import CUT_OFF, MANY
from lora_kit.evaluation.diagnostics import SecondaryMetric
from lora_kit.evaluation.file_verdicts import file_decisions, judge_files
from lora_kit.evaluation.ledger import DRIFT
from lora_kit.evaluation.ledger_view import LedgerView
from lora_kit.evaluation.llm_judge.reliability import judge_reliability
from lora_kit.evaluation.merged_selection import judge_merged, select_merged_model
from lora_kit.evaluation.pairs import Entries, pair
from lora_kit.evaluation.stopping import (
    LookPlan,
    TaskEnd,
    adapter_end,
    merged_end,
    until_look,
)
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.task_verdict import BASELINES, BaselineComparison, TaskLooks, TaskVerdict
from lora_kit.evaluation.verdict import Finding, SuiteVerdict, Verdict
from lora_kit.runtime.errors import EvaluationError
from lora_kit.statistics.decisions import combine_decisions
from lora_kit.statistics.looks import Look

ALARM_ALPHA = 0.05


def judge(view: LedgerView, suites: Sequence[Suite], plan: LookPlan | None = None) -> Verdict:
    """Judge arm `adapter` against arm `base` on every task, then merged models and baselines.

    The results of one task at a time are in memory if they come from a ledger on disk.

    Args:
        view: results of all arms.
        suites: suites of the tasks.
        plan: looks at the tasks; by default, all items at once.

    Raises:
        EvaluationError: if a task has no item with a score in both arms.
    """
    plan = plan or LookPlan()
    deciding = [suite.in_verdict for suite in suites]
    judged = tuple(_judge_suite(suite, view, plan) for suite in deciding)
    ships, selection, judged = select_merged_model(view, deciding, _with_alarms(judged))
    judged = tuple(
        replace(verdict, beside=_judge_beside(suite, view, plan))
        for verdict, suite in zip(judged, suites, strict=True)
    )
    merged = [task.merged for suite in judged for task in suite.tasks if task.merged]
    return Verdict(
        combine_decisions([suite.decision for suite in judged]),
        combine_decisions(merged) if merged else None,
        ships,
        tuple(finding for suite in judged for finding in _findings(suite)),
        judged,
        selection,
        file_decisions(judged),
    )


def _judge_suite(suite: Suite, view: LedgerView, plan: LookPlan) -> SuiteVerdict:
    tasks = _judge_tasks(suite, suite.tasks, view, plan)
    decision = combine_decisions([task.decision for task in tasks])
    return SuiteVerdict(suite.name, suite.role, suite.description, decision, tasks)


def _judge_beside(suite: Suite, view: LedgerView, plan: LookPlan) -> tuple[TaskVerdict, ...]:
    """Judge the tasks of a suite that stand beside the verdict."""
    return _judge_tasks(suite, [task for task in suite.tasks if not task.in_verdict], view, plan)


def _judge_tasks(
    suite: Suite, tasks: Sequence[TaskSpec], view: LedgerView, plan: LookPlan
) -> tuple[TaskVerdict, ...]:
    judged = []
    for task in tasks:
        arms = view.arms(suite.name, task.name, texts_to_judge(task))
        judged.append(_judge_task(suite, task, arms, plan))
    return tuple(judged)


def _judge_task(
    suite: Suite, task: TaskSpec, arms: Mapping[str, Entries], plan: LookPlan
) -> TaskVerdict:
    looks = plan.looks(suite, task)
    end = adapter_end(arms, suite, task, looks)
    pairs, comparison = end.pairs, end.comparison
    # An undecided test is decided by more items; another reason is not.
    is_open = end.decision == comparison.decision == "INCONCLUSIVE"
    merged_until, merged_look = merged_end(arms, suite, task, looks, end)
    return TaskVerdict(
        task=task.name,
        unit=task.unit,
        higher_is_better=task.higher_is_better,
        decision=end.decision,
        reason=end.why,
        base=task_score(pairs.before, task),
        adapter=task_score(pairs.after, task),
        interval=comparison.interval,
        p=comparison.p,
        method=comparison.method,
        margin=task.margin,
        rationale=task.rationale,
        missing=pairs.missing,
        won=pairs.won,
        lost=pairs.lost,
        items_needed=items_to_decide(pairs, task, end.look) if is_open else None,
        loss_p=end.look.repeated_p(loss_p(pairs, task)),
        loss_adjusted=1.0,
        alarm=False,
        merged=None,
        merged_interval=None,
        merges=judge_merged(suite, task, _asked(arms, merged_until), merged_look),
        baselines=_compare_baselines(suite, task, _asked(arms, end.look.number), end.look),
        measures=diagnostics.secondary_metrics(pairs, task, end.look),
        slices=diagnostics.slice_results(pairs, end.look),
        calibration=diagnostics.choice_calibration(pairs, end.look),
        classes=diagnostics.class_scores(pairs, task),
        drift=diagnostics.mean_drift(arms.get(DRIFT, {})),
        looks=_task_looks(f"{suite.name}/{task.name}", arms, end, merged_until, plan),
        files=judge_files(suite, task, _asked(arms, merged_until), merged_look),
        judged=judge_reliability(pairs, task),
    )


def _asked(arms: Mapping[str, Entries], until: int) -> dict[str, Entries]:
    return {arm: until_look(entries, until) for arm, entries in arms.items()}


def _task_looks(
    name: str, arms: Mapping[str, Entries], end: TaskEnd, merged_until: int, plan: LookPlan
) -> TaskLooks:
    asked = len(end.pairs.before) + end.pairs.missing
    return TaskLooks(
        ended_at=end.look.number,
        planned=len(end.look.looks),
        level=end.look.level,
        asked=asked,
        items=plan.tasks[name].items[-1] if name in plan.tasks else asked,
        reason=end.reason,
        merged_at=merged_until if any(is_shipped(arm) for arm in arms) else None,
    )


def _compare_baselines(
    suite: Suite, task: TaskSpec, arms: Mapping[str, Entries], look: Look
) -> tuple[BaselineComparison, ...]:
    comparisons = []
    for arm in BASELINES:
        if arm not in arms or suite.role != "gain":
            continue
        where = f"{suite.name}/{task.name}, {arm}"
        try:
            pairs = pair(arms[arm], arms.get("adapter", {}), task, where)
        except EvaluationError:
            continue  # the baseline has no score in common with the adapter
        comparison = compare(pairs, task, look)
        comparisons.append(
            BaselineComparison(
                arm,
                task_score(pairs.before, task),
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
        findings += [
            _cut_finding(suite.suite, task.task, one)
            for one in task.measures
            if one.name == CUT_OFF and max(one.base, one.adapter) > MANY
        ]
    return findings


def _cut_finding(suite: str, task: str, cut: SecondaryMetric) -> Finding:
    text = (
        f"{cut.base:.0%} of the base's answers and {cut.adapter:.0%} of the adapter's on {task} "
        "were cut at max_new_tokens: raise it, so that they are judged as a whole"
    )
    return Finding("answers cut off", suite, task, text)


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
