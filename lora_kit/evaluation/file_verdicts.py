"""Verdicts on the forms in which a model is served, each against the same base as the adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_kit.evaluation.arm_names import control_arm, is_serving_format
from lora_kit.evaluation.comparisons import compare, decide, task_score
from lora_kit.evaluation.pairs import Entries, Pairs, pair
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.evaluation.task_verdict import FileTask
from lora_kit.evaluation.verdict import SuiteVerdict
from lora_kit.runtime.errors import EvaluationError
from lora_kit.statistics.decisions import Decision, Interval, combine_decisions
from lora_kit.statistics.looks import Look, Looks


def judge_files(
    suite: Suite, task: TaskSpec, arms: Mapping[str, Entries], look: Look
) -> tuple[FileTask, ...]:
    """Judge each exported file by its difference from the base, in order of the arms.

    Args:
        suite: suite of the task.
        task: the task.
        arms: entries of the arms, on the items that count.
        look: look whose level the comparisons have.
    """
    where = f"{suite.name}/{task.name}"
    return tuple(
        _judge_file(arm, pair(arms["base"], entries, task, where), suite, task, arms, look)
        for arm, entries in arms.items()
        if is_serving_format(arm)
    )


def _judge_file(
    arm: str,
    pairs: Pairs,
    suite: Suite,
    task: TaskSpec,
    arms: Mapping[str, Entries],
    look: Look,
) -> FileTask:
    comparison = compare(pairs, task, look)
    decision, reason = decide(pairs, comparison.decision, task)
    return FileTask(
        arm=arm,
        decision=decision,
        reason=reason,
        mean=task_score(pairs.after, task),
        interval=comparison.interval,
        p=comparison.p,
        missing=pairs.missing,
        from_adapter=_difference(arms.get("adapter", {}), arms[arm], suite, task),
        control=_difference(arms["base"], arms.get(control_arm(arm), {}), suite, task),
    )


def _difference(before: Entries, after: Entries, suite: Suite, task: TaskSpec) -> Interval | None:
    """Return the two-sided interval of the difference of two arms, on common items."""
    common = {item: entry for item, entry in after.items() if item in before}
    try:
        pairs = pair({item: before[item] for item in common}, common, task, suite.name)
    except EvaluationError:
        return None  # no item has a score in both
    whole = Looks.fixed(suite.alpha / 2).look(1)
    return compare(pairs, task.model_copy(update={"margin": None}), whole).interval


def file_decisions(judged: Sequence[SuiteVerdict]) -> dict[str, Decision]:
    """Return the decision on each file: all tasks that it was asked have to pass."""
    results = [one for suite in judged for task in suite.tasks for one in task.files]
    return {
        arm: combine_decisions([one.decision for one in results if one.arm == arm])
        for arm in dict.fromkeys(one.arm for one in results)
    }
