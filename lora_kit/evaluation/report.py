"""The report: a verdict and its evidence, as one HTML page and as Markdown.

What a model said, what it was asked and what things are called is untrusted: both templates escape
every value that they print, unless it is said otherwise.
"""

from __future__ import annotations

import html
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_kit.evaluation.forest import NARROW, WIDE, Difference, forest
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.statistics import Decision, combined
from lora_kit.evaluation.verdict import SuiteVerdict, TaskVerdict, Verdict
from lora_kit.files import write_text

LARGEST = 10
"""Flips that are shown of a task whose scores are not 0 or 1."""
CLAUSES = 3
"""Tasks that the sentence names at most."""


@dataclass(frozen=True)
class ReportFacts:
    """What the report says of the run, besides the verdict."""

    title: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Flips:
    """Items on which the adapter did worse, or better: pairs of base and adapter.

    Attributes:
        shown: all of them where scores are 0 or 1, otherwise the largest, in order of size.
        total: how many there are.
    """

    shown: tuple[tuple[Entry, Entry], ...]
    total: int


@dataclass(frozen=True)
class TaskView:
    """A task with its numbers and its flips.

    Attributes:
        has_outputs: whether an arm has put out anything; for losses there is nothing to show.
    """

    numbers: Difference
    has_outputs: bool
    lost: Flips
    won: Flips


@dataclass(frozen=True)
class SuiteView:
    """A suite with its tasks.

    Attributes:
        confidence: of the two-sided intervals, in percent.
        sure: of the decisions, in percent.
    """

    verdict: SuiteVerdict
    confidence: str
    sure: str
    tasks: tuple[TaskView, ...]


@dataclass(frozen=True)
class Answer:
    """One of the reader's questions, a word for the answer, and what is behind it."""

    question: str
    word: str
    detail: str
    decision: Decision | None


def write_report(
    directory: Path, verdict: Verdict, entries: Sequence[Entry], facts: ReportFacts
) -> None:
    """Write `report.html` and `report.md`; arms other than `base` and `adapter` are left out."""
    suites = _suite_views(verdict, entries)
    rows = [(_heading(s.verdict), [task.numbers for task in s.tasks]) for s in suites]
    values = {
        "facts": facts,
        "verdict": verdict,
        "sentence": sentence(verdict),
        "answers": answers(verdict),
        "suites": suites,
        "forests": [forest(rows, layout) for layout in (WIDE, NARROW)],
    }
    for name, escape in (("report.html", None), ("report.md", _markdown)):
        write_text(directory / name, _environment(escape).get_template(f"{name}.j2").render(values))


def _environment(escape: Callable[[str], str] | None) -> Environment:
    """Templates whose values are made visible and escaped: as HTML, or by the given function."""

    def finalize(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return escape(visible(value)) if escape else visible(value)

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape is None,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


# What would break a file or reorder what stands around it: controls, bidirectional embeddings,
# overrides and isolates (https://trojansource.codes), line separators, halves of surrogate pairs.
_SPANS = (
    *((0, 0x20), (0x7F, 0xA0), (0x2028, 0x202F), (0x2066, 0x206A)),
    *((0xD800, 0xE000), (0xFFFE, 0x10000)),
)
_VISIBLE = {
    code: f"[U+{code:04X}]"
    for first, end in _SPANS
    for code in range(first, end)
    if chr(code) not in "\t\n"
}


def visible(text: str) -> str:
    """The text with characters that cannot be seen, but do something, written out."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def _markdown(text: str) -> str:
    """One line of Markdown that shows the text and does nothing else: no HTML, link or mention."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    # GitHub notifies people and links addresses; a space of no width keeps it from that.
    return re.sub(r"@(?=\w)|#(?=\d)|:(?=//)|\bwww(?=\.)", "\\g<0>\u200b", text, flags=re.IGNORECASE)


def sentence(verdict: Verdict) -> str:
    """Why the decision is what it is."""
    if not verdict.suites:
        return "Nothing was evaluated."
    if verdict.decision == "PASS":
        return _passed(verdict)
    clauses = [_clause(d) for d in _differences(verdict) if d.task.decision == verdict.decision]
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
    of = _differences(verdict)
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
    # Of those that decide, the one that uses up most of its margin.
    worst = min(
        (d for d in retention if d.task.decision == decision),
        key=lambda d: d.task.interval.low / (d.task.margin or 1.0),
    )
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
    sure = sorted({_confidence(suite) for suite in verdict.suites})
    items = sorted(interval.items for interval in intervals)
    span = f"{items[0]:,}" if items[0] == items[-1] else f"{items[0]:,} to {items[-1]:,}"
    missing = sum(task.missing for suite in verdict.suites for task in suite.tasks)
    detail = f"{span} items a task" + (f"; {missing:,} without a score" if missing else "")
    word = " to ".join(_percent(value) for value in sorted({sure[0], sure[-1]}))
    return Answer(question, f"{word} confidence for each task", f"{detail}.", None)


def _confidence(suite: SuiteVerdict) -> float:
    """Of a suite's decisions: two-sided for gain, of the pessimistic limit for retention."""
    confidence = suite.tasks[0].interval.confidence
    return confidence if suite.role == "gain" else (1 + confidence) / 2


def _percent(confidence: float) -> str:
    return f"{confidence * 100:.6g}%"


def _heading(suite: SuiteVerdict) -> str:
    return f"{suite.suite} ({suite.role})"


def _differences(verdict: Verdict) -> list[Difference]:
    """Of all tasks; those of the same name in two suites are told apart by the suite's."""
    names = Counter(task.task for suite in verdict.suites for task in suite.tasks)
    return [
        Difference.of(task.task if names[task.task] == 1 else f"{suite.suite}/{task.task}", task)
        for suite in verdict.suites
        for task in suite.tasks
    ]


def _suite_views(verdict: Verdict, entries: Sequence[Entry]) -> list[SuiteView]:
    arms: dict[tuple[str, str, str], dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        arms[entry.suite, entry.task, entry.arm][entry.item] = entry
    return [
        SuiteView(
            suite,
            _percent(suite.tasks[0].interval.confidence),
            _percent(_confidence(suite)),
            tuple(
                _task_view(
                    task,
                    arms[suite.suite, task.task, "base"],
                    arms[suite.suite, task.task, "adapter"],
                )
                for task in suite.tasks
            ),
        )
        for suite in verdict.suites
    ]


def _task_view(
    task: TaskVerdict, base: Mapping[str, Entry], adapter: Mapping[str, Entry]
) -> TaskView:
    numbers = Difference.of(task.task, task)
    gains: list[tuple[float, Entry, Entry]] = []
    for item in sorted(base.keys() & adapter.keys()):
        before, after = base[item].score, adapter[item].score
        if before is not None and after is not None:
            gain = after - before if task.higher_is_better else before - after
            gains.append((gain, base[item], adapter[item]))
    limit = None if numbers.notation.percent else LARGEST

    def flips(sign: int) -> Flips:
        pairs = sorted((g for g in gains if g[0] * sign > 0), key=lambda g: -abs(g[0]))
        return Flips(tuple((b, a) for _, b, a in pairs[:limit]), len(pairs))

    has_outputs = any(b.output or a.output for _, b, a in gains)
    return TaskView(numbers, has_outputs, lost=flips(-1), won=flips(1))
