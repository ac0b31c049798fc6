"""Paired differences between two runs on a task, with Holm's correction over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_kit.evaluation.comparisons import compare, task_score
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.pairs import Pairs, has_score, pair
from lora_kit.evaluation.stopping import asked_looks, until_look
from lora_kit.evaluation.suite import Suite, SuiteRole
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runs.directory import HALF_A, HALF_B
from lora_kit.runtime.errors import EvaluationError
from lora_kit.selection.comparison.results import RunTask, TaskPart
from lora_kit.statistics.decisions import Decision, Interval, holm
from lora_kit.statistics.looks import Look, Looks

MAX_CHANGED = 10
"""Largest number of items of a pair, a task and a direction whose texts are shown."""
FLAT = 1.0
"""Shape of the error spending over looks, with about the same level at each (as Pocock's).

Pairs end at the looks that decide their runs against the base, mostly not at the last one. The
level of a fixed number of items is exceeded there: up to 6.7% of pairs of equal runs differed at 5%
(five looks, 100,000 draws)."""
ITEMS = {
    frozenset({HALF_A}): "half A",
    frozenset({HALF_B}): "half B",
    frozenset({HALF_A, HALF_B}): "both halves",
}
"""Names of the items of halves."""


@dataclass(frozen=True)
class Contender:
    """Run in a pair, on a task.

    Attributes:
        number: place of the run on the page, from 0.
        chosen: true if it was chosen by its results on half A.
        task: results on the task.
    """

    number: int
    chosen: bool
    task: RunTask


@dataclass(frozen=True)
class RunDifference:
    """Paired difference between two runs on a task.

    Attributes:
        first: number of the first run.
        second: number of the second run.
        suite: name of the suite.
        digest: digest of the suite.
        role: role of the suite.
        task: name of the task.
        unit: unit of the scores.
        alpha: level of the two-sided test, and of the decision after Holm.
        scores: score of each run, on the items that both have a score on.
        interval: interval of the difference, positive where the second run is better; without a
            correction for the number of comparisons.
        p: two-sided p-value of no difference.
        adjusted: `p` after Holm, over all pairs and tasks.
        decision: PASS if the second run is shown to be better, FAIL if the first one is.
        doubt: reason why a significant difference proves nothing; empty without one.
        items: items of the comparison in words; empty if they are no known half.
        missing: number of items that both were asked, without a score in one of them.
        binary: true if every score is 0 or 1.
        second_only: number of items that only the second run got right (for other scores: on which
            it is better).
        first_only: the same of the first run.
        changed: ids of the items with the largest differences, those where the first run is
            better, then those where the second one is.
    """

    first: int
    second: int
    suite: str
    digest: str
    role: SuiteRole
    task: str
    unit: str
    alpha: float
    scores: tuple[float, float]
    interval: Interval
    p: float
    adjusted: float
    decision: Decision
    doubt: str
    items: str
    missing: int
    binary: bool
    second_only: int
    first_only: int
    changed: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def pair(self) -> tuple[int, int]:
        """Numbers of both runs."""
        return self.first, self.second

    @property
    def better(self) -> int | None:
        """Number of the run that is shown to be better; `None` if none is."""
        return {"PASS": self.second, "FAIL": self.first, "INCONCLUSIVE": None}[self.decision]


def compare_pair(
    suite: Suite, task: TaskSpec, first: Contender, second: Contender
) -> RunDifference:
    """Compare two runs on the items of a task that both have a score on.

    A run that was chosen on half A is compared on half B alone where the other one has its items.
    The decision is that of the pair alone, until `with_holm`.

    Raises:
        EvaluationError: if the runs share no item with a score, or have other texts or looks.
    """
    where = f"{suite.name}/{task.name}"
    before, after, look = _shared(suite, where, first, second)
    plain = task.model_copy(update={"margin": None})
    pairs = pair(before, after, plain, where)
    found = compare(pairs, plain, look)
    halves = first.task.halves_of(before) | second.task.halves_of(before)
    doubt = _doubt(pairs, before, after, found.interval.delta > 0, (first, second))
    return RunDifference(
        first=first.number,
        second=second.number,
        suite=suite.name,
        digest=suite.digest,
        role=suite.role,
        task=task.name,
        unit=task.unit,
        alpha=suite.alpha,
        scores=(task_score(pairs.before, plain), task_score(pairs.after, plain)),
        interval=found.interval,
        p=found.p,
        adjusted=found.p,
        decision=found.decision,
        doubt=doubt,
        items=ITEMS.get(halves, ""),
        missing=pairs.missing,
        binary=pairs.binary,
        second_only=pairs.won,
        first_only=pairs.lost,
        changed=_changed(pairs),
    )


def with_holm(differences: Sequence[RunDifference]) -> list[RunDifference]:
    """Adjust all p-values by Holm's method; decide only what is significant afterwards."""
    adjusted = holm([one.p for one in differences])
    return [
        replace(
            one,
            adjusted=p,
            decision=one.decision if p < one.alpha and not one.doubt else "INCONCLUSIVE",
        )
        for one, p in zip(differences, adjusted, strict=True)
    ]


def _shared(
    suite: Suite, where: str, first: Contender, second: Contender
) -> tuple[dict[str, Entry], dict[str, Entry], Look]:
    """Return the entries of both runs on the items that both were asked, and the look they end at.

    Raises:
        EvaluationError: if there are none, or they cannot be compared.
    """
    unseen = [
        (one.task.half_b if one.chosen else None) or one.task.whole for one in (first, second)
    ]
    parts, items = unseen, unseen[0].adapter.keys() & unseen[1].adapter.keys()
    if not items:
        parts = [one.task.whole for one in (first, second)]
    look, ends = _look(suite, where, parts[0], parts[1])
    before, after = (until_look(one.adapter, end) for one, end in zip(parts, ends, strict=True))
    items = before.keys() & after.keys()
    if not items:
        raise EvaluationError(f"{where}: no item in common")
    differ = sum(_content(before[item]) != _content(after[item]) for item in items)
    if differ:
        raise EvaluationError(
            f"{where}: {differ:,} of {len(items):,} items have another prompt, reference or cluster"
        )
    return _only(before, items), _only(after, items), look


def _content(entry: Entry) -> tuple[str, str, str]:
    return entry.prompt, entry.reference, entry.cluster


def _only(entries: Mapping[str, Entry], items: frozenset[str] | set[str]) -> dict[str, Entry]:
    return {item: entries[item] for item in sorted(items)}


def _look(
    suite: Suite, where: str, first: TaskPart, second: TaskPart
) -> tuple[Look, tuple[int, int]]:
    """Return the look at which the shared items end, and the last look of each run's entries.

    An evaluation in looks ends where its results say, which makes differences at its end too
    large. Repeated intervals and p-values of its looks hold whenever it stops.
    """
    asked = asked_looks(first.adapter), asked_looks(second.adapter)
    lengths = len(first.looks), len(second.looks)
    if lengths == (1, 1):
        return Looks.fixed(suite.alpha / 2).look(1), asked
    if 1 in lengths:
        # One was asked all items, the other one those until its end.
        looks, end = (first.looks, asked[0]) if lengths[1] == 1 else (second.looks, asked[1])
        ends = asked
    elif first.looks == second.looks:
        looks, end = first.looks, min(asked)
        ends = end, end
    else:
        raise EvaluationError(f"{where}: asked in other looks")
    return replace(looks, alpha=suite.alpha / 2, shape=FLAT).look(min(end, len(looks))), ends


def _doubt(
    pairs: Pairs,
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
    is_second: bool,
    runs: tuple[Contender, Contender],
) -> str:
    """Return why the run with the better score is not called better, whatever p is."""
    better, other = (after, before) if is_second else (before, after)
    leader = runs[1] if is_second else runs[0]
    if leader.chosen and HALF_A in leader.task.halves_of(better):
        return "was chosen on these items, which makes its lead too large"
    if any(has_score(other[item]) and not has_score(better[item]) for item in better):
        return "has no score on items on which the other one has"
    if not pairs.binary and np.ptp(pairs.differences) == 0:
        return "leads by the same on every item: no spread to estimate an interval from"
    return ""


def _changed(pairs: Pairs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    order = np.argsort(-np.abs(pairs.differences), kind="stable")
    first, second = (
        tuple(pairs.before[n].item for n in order if side * pairs.differences[n] > 0)[:MAX_CHANGED]
        for side in (-1, 1)
    )
    return first, second
