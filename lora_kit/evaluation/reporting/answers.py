"""Verdict in words: one sentence, and an answer to each of the reader's questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import format_percent
from lora_kit.evaluation.reporting.plane import deciding_task
from lora_kit.evaluation.verdict import SuiteVerdict, Verdict
from lora_kit.statistics.decisions import Decision, combine_decisions

MAX_CLAUSES = 3
"""Maximum number of tasks that the sentence names."""


@dataclass(frozen=True)
class Answer:
    """Answer to one of the reader's questions.

    Attributes:
        question: the question.
        word: answer in a few words.
        detail: values behind the answer.
        decision: decision behind the answer; `None` if there is none.
    """

    question: str
    word: str
    detail: str
    decision: Decision | None


def summary_sentence(verdict: Verdict) -> str:
    """Return a sentence with the reason for the decision."""
    if not verdict.suites:
        return "Nothing was evaluated."
    if verdict.decision == "PASS":
        return _passed(verdict)
    clauses = [_clause(d) for d in task_differences(verdict) if d.task.decision == verdict.decision]
    more = [f"and {len(clauses) - MAX_CLAUSES} more"] if len(clauses) > MAX_CLAUSES else []
    return "; ".join(clauses[:MAX_CLAUSES] + more) + "."


def _passed(verdict: Verdict) -> str:
    gained = [suite.suite for suite in verdict.suites if suite.role == "gain"]
    if not gained:
        return "No loss exceeds its margin; gain was not measured."
    better = f"Better on {' and '.join(gained)}"
    if len(gained) < len(verdict.suites):
        return f"{better}; no loss exceeds its margin."
    return f"{better}; retention was not measured."


def _clause(difference: Difference) -> str:
    name, task = difference.name, difference.task
    if task.reason:
        return f"{name} would pass by its interval alone, but {task.reason}"
    failed = task.decision == "FAIL"
    if task.margin is None:
        result = "got worse" if failed else "shows no significant gain"
    else:
        may_have = "" if failed else "may have "
        result = f"{may_have}lost more than its margin of {difference.margin} {difference.unit}"
    if failed:
        return f"{name} {result}"
    now = "one cluster" if task.interval.clusters == 1 else f"{task.interval.items:,} items"
    return f"{name} {result}: a decision needs {difference.needs} (now {now})"


def summary_answers(verdict: Verdict) -> tuple[Answer, ...]:
    """Answer whether the adapter helped, what got worse, and how certain both are."""
    differences = task_differences(verdict)
    gain = [d for d in differences if d.task.margin is None]
    retention = [d for d in differences if d.task.margin is not None]
    return _gain_answer(gain), _retention_answer(retention), _certainty_answer(verdict)


def _gain_answer(gain: Sequence[Difference]) -> Answer:
    question = "Did it help?"
    if not gain:
        return Answer(question, "Not measured", "No suite has the role gain.", None)
    counts = Counter(d.task.decision for d in gain)
    decision = combine_decisions([d.task.decision for d in gain])
    word = {"PASS": "Yes", "FAIL": "No, it got worse", "INCONCLUSIVE": "Not shown"}[decision]
    if decision != "PASS" and counts["PASS"]:
        word = "Partly"
    detail = f"Better on {counts['PASS']} of {len(gain)} task{'' if len(gain) == 1 else 's'}"
    detail += f", undecided on {counts['INCONCLUSIVE']}" if counts["INCONCLUSIVE"] else ""
    detail += f", worse on {counts['FAIL']}" if counts["FAIL"] else ""
    return Answer(question, word, f"{detail}.", decision)


def _retention_answer(retention: Sequence[Difference]) -> Answer:
    question = "Did anything get worse?"
    if not retention:
        return Answer(question, "Not measured", "No suite has the role retention.", None)
    decision = combine_decisions([d.task.decision for d in retention])
    word = {
        "PASS": "Nothing beyond its margin",
        "INCONCLUSIVE": "A loss is not ruled out",
        "FAIL": "Yes, beyond its margin",
    }[decision]
    worst = deciding_task(retention)
    detail = (
        f"{'Closest to its margin' if decision == 'PASS' else 'Deciding task'}: {worst.name} "
        f"{worst.delta} {worst.unit}, worst case {worst.low}, margin {worst.margin}."
    )
    return Answer(question, word, detail, decision)


def _certainty_answer(verdict: Verdict) -> Answer:
    question = "How certain is it?"
    intervals = [task.interval for _, task in verdict.tasks]
    if not intervals:
        return Answer(question, "Not at all", "Nothing was evaluated.", None)
    levels = sorted({decision_confidence(suite) for suite in verdict.suites})
    items = sorted(interval.items for interval in intervals)
    span = f"{items[0]:,}" if items[0] == items[-1] else f"{items[0]:,} to {items[-1]:,}"
    missing = sum(task.missing for _, task in verdict.tasks)
    left_out = sum(task.looks.left_out for _, task in verdict.tasks)
    detail = f"{span} items per task" + (f"; {missing:,} without a score" if missing else "")
    if left_out:
        every = sum(task.looks.items for _, task in verdict.tasks)
        detail += f"; {left_out:,} of all {every:,} were not asked, their tasks had ended"
    word = " to ".join(format_percent(level) for level in sorted({levels[0], levels[-1]}))
    return Answer(question, f"{word} confidence per task", f"{detail}.", None)


def decision_confidence(suite: SuiteVerdict) -> float:
    """Return the confidence level of a suite's decisions.

    Gain is decided by a two-sided interval, retention by its lower limit, a one-sided bound.
    """
    confidence = suite.tasks[0].interval.confidence
    return confidence if suite.role == "gain" else (1 + confidence) / 2


def task_differences(verdict: Verdict) -> list[Difference]:
    """Return the formatted differences of all tasks.

    Tasks that share a name have the name of their suite in front.
    """
    names = Counter(task.task for _, task in verdict.tasks)
    return [
        Difference.of(task.task if names[task.task] == 1 else f"{suite.suite}/{task.task}", task)
        for suite, task in verdict.tasks
    ]
