"""The verdict in words: a sentence, and an answer to each of the reader's questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_kit.evaluation.reporting.forest import Difference
from lora_kit.evaluation.reporting.notation import percent
from lora_kit.evaluation.reporting.plane import deciding
from lora_kit.evaluation.verdict import SuiteVerdict, Verdict
from lora_kit.statistics.decisions import Decision, combined

CLAUSES = 3
"""Tasks that the sentence names at most."""


@dataclass(frozen=True)
class Answer:
    """One of the reader's questions, a word for the answer, and what is behind it."""

    question: str
    word: str
    detail: str
    decision: Decision | None


def sentence(verdict: Verdict) -> str:
    """Why the decision is what it is."""
    if not verdict.suites:
        return "Nothing was evaluated."
    if verdict.decision == "PASS":
        return _passed(verdict)
    clauses = [_clause(d) for d in differences(verdict) if d.task.decision == verdict.decision]
    more = [f"and {len(clauses) - CLAUSES} more"] if len(clauses) > CLAUSES else []
    return "; ".join(clauses[:CLAUSES] + more) + "."


def _passed(verdict: Verdict) -> str:
    gained = [suite.suite for suite in verdict.suites if suite.role == "gain"]
    if not gained:
        return "Nothing lost beyond its margin; whether it helped was not measured."
    better = f"Better on {' and '.join(gained)}"
    if len(gained) < len(verdict.suites):
        return f"{better}; nothing lost beyond its margin."
    return f"{better}; what it may have broken was not measured."


def _clause(of: Difference) -> str:
    if of.task.reason:
        return f"{of.name} would pass by its interval, but {of.task.reason}"
    failed = of.task.decision == "FAIL"
    if of.task.margin is None:
        found = "got worse" if failed else "shows no certain gain"
    else:
        found = f"{'' if failed else 'may have '}lost more than its margin of {of.margin} {of.unit}"
    if failed:
        return f"{of.name} {found}"
    now = "one" if of.task.interval.clusters == 1 else f"{of.task.interval.items:,}"
    return f"{of.name} {found}: {of.needs} would decide ({now} now)"


def answers(verdict: Verdict) -> tuple[Answer, ...]:
    """Did it help, what did it break, how sure."""
    of = differences(verdict)
    gain = [d for d in of if d.task.margin is None]
    retention = [d for d in of if d.task.margin is not None]
    return _helped(gain), _broke(retention), _sure(verdict)


def _helped(gain: Sequence[Difference]) -> Answer:
    question = "Did it help?"
    if not gain:
        return Answer(question, "Not measured", "There is no suite with the role gain.", None)
    counts = Counter(d.task.decision for d in gain)
    decision = combined([d.task.decision for d in gain])
    word = {"PASS": "Yes", "FAIL": "No, worse", "INCONCLUSIVE": "Not shown"}[decision]
    if decision != "PASS" and counts["PASS"]:
        word = "In part"
    detail = f"Better on {counts['PASS']} of {len(gain)} task{'' if len(gain) == 1 else 's'}"
    detail += f", undecided on {counts['INCONCLUSIVE']}" if counts["INCONCLUSIVE"] else ""
    detail += f", worse on {counts['FAIL']}" if counts["FAIL"] else ""
    return Answer(question, word, f"{detail}.", decision)


def _broke(retention: Sequence[Difference]) -> Answer:
    question = "What did it break?"
    if not retention:
        return Answer(question, "Not measured", "There is no suite with the role retention.", None)
    decision = combined([d.task.decision for d in retention])
    word = {
        "PASS": "Nothing beyond its margin",
        "INCONCLUSIVE": "A loss is not ruled out",
        "FAIL": "More than its margin",
    }[decision]
    worst = deciding(retention)
    detail = (
        f"{'Closest' if decision == 'PASS' else 'Worst'}: {worst.name} {worst.delta} {worst.unit}, "
        f"at worst {worst.low}; margin {worst.margin}."
    )
    return Answer(question, word, detail, decision)


def _sure(verdict: Verdict) -> Answer:
    question = "How sure?"
    intervals = [task.interval for suite in verdict.suites for task in suite.tasks]
    if not intervals:
        return Answer(question, "Not at all", "Nothing was evaluated.", None)
    sure = sorted({sureness(suite) for suite in verdict.suites})
    items = sorted(interval.items for interval in intervals)
    span = f"{items[0]:,}" if items[0] == items[-1] else f"{items[0]:,} to {items[-1]:,}"
    missing = sum(task.missing for suite in verdict.suites for task in suite.tasks)
    detail = f"{span} items a task" + (f"; {missing:,} without a score" if missing else "")
    word = " to ".join(percent(value) for value in sorted({sure[0], sure[-1]}))
    return Answer(question, f"{word} confidence for each task", f"{detail}.", None)


def sureness(suite: SuiteVerdict) -> float:
    """Of a suite's decisions: two-sided for gain, of the pessimistic limit for retention."""
    confidence = suite.tasks[0].interval.confidence
    return confidence if suite.role == "gain" else (1 + confidence) / 2


def differences(verdict: Verdict) -> list[Difference]:
    """Of all tasks; those of the same name in two suites are told apart by the suite's."""
    names = Counter(task.task for suite in verdict.suites for task in suite.tasks)
    return [
        Difference.of(task.task if names[task.task] == 1 else f"{suite.suite}/{task.task}", task)
        for suite in verdict.suites
        for task in suite.tasks
    ]
