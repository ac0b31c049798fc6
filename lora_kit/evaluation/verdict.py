"""From the ledger to the verdict: PASS, FAIL or INCONCLUSIVE for each task, suite and overall."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_kit.errors import EvaluationError
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.statistics import (
    Decision,
    Interval,
    combined,
    items_needed,
    non_inferiority,
    paired_interval,
    superiority,
)
from lora_kit.evaluation.suite import Role, Suite, TaskSpec


@dataclass(frozen=True)
class TaskVerdict:
    """One task: both arms' means, the oriented difference with its interval, and the decision.

    Attributes:
        base: mean score of the base.
        adapter: mean score of the adapter.
        interval: of the difference, positive where the adapter is better.
        margin: `None` for gain.
        missing: items without a score in one of the arms, left out of the comparison; a task whose
            adapter lacks a score that the base has does not pass.
        won: items that only the adapter got right (for other scores: got better).
        lost: items that only the base got right (for other scores: got worse).
        items_needed: about how many items would decide it, if it is undecided.
    """

    task: str
    unit: str
    higher_is_better: bool
    decision: Decision
    base: float
    adapter: float
    interval: Interval
    margin: float | None
    why: str
    missing: int
    won: int
    lost: int
    items_needed: int | None


@dataclass(frozen=True)
class SuiteVerdict:
    """All tasks of a suite have to pass."""

    suite: str
    role: Role
    description: str
    decision: Decision
    tasks: tuple[TaskVerdict, ...]


@dataclass(frozen=True)
class Verdict:
    """All suites have to pass."""

    decision: Decision
    suites: tuple[SuiteVerdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; infinite limits are written as null."""
        value: dict[str, Any] = _finite(asdict(self))
        return value


def judge(entries: Sequence[Entry], suites: Sequence[Suite]) -> Verdict:
    """Judge arm `adapter` against arm `base` on every task.

    Raises:
        EvaluationError: if a task has no item with a score in both arms.
    """
    scores: dict[tuple[str, str, str], dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        scores[entry.suite, entry.task, entry.arm][entry.item] = entry
    judged = tuple(
        _judge_suite(
            suite,
            tuple(
                _judge_task(
                    suite,
                    task,
                    scores[suite.name, task.name, "base"],
                    scores[suite.name, task.name, "adapter"],
                )
                for task in suite.tasks
            ),
        )
        for suite in suites
    )
    return Verdict(combined([suite.decision for suite in judged]), judged)


def _judge_suite(suite: Suite, tasks: tuple[TaskVerdict, ...]) -> SuiteVerdict:
    return SuiteVerdict(
        suite.name,
        suite.role,
        suite.description,
        combined([task.decision for task in tasks]),
        tasks,
    )


def _judge_task(
    suite: Suite, task: TaskSpec, base: dict[str, Entry], adapter: dict[str, Entry]
) -> TaskVerdict:
    if base.keys() != adapter.keys():
        raise EvaluationError(
            f"{suite.name}/{task.name}: the arms were not evaluated on the same items "
            f"({len(base)} and {len(adapter)})"
        )
    pairs = [
        (_number(base[item].score), _number(adapter[item].score), base[item].cluster)
        for item in sorted(base)
    ]
    scored = [(b, a, c) for b, a, c in pairs if b is not None and a is not None]
    if not scored:
        raise EvaluationError(f"{suite.name}/{task.name}: no item has a score in both arms")
    before = np.array([pair[0] for pair in scored])
    after = np.array([pair[1] for pair in scored])
    differences = (after - before) if task.higher_is_better else (before - after)
    # One-sided at alpha is the pessimistic limit of a two-sided interval at 1 - 2 alpha.
    confidence = 1 - suite.alpha if suite.role == "gain" else 1 - 2 * suite.alpha
    interval = paired_interval(
        differences, [pair[2] for pair in scored], confidence, task.is_binary
    )
    decision = (
        superiority(interval) if task.margin is None else non_inferiority(interval, task.margin)
    )
    lost_scores = any(b is not None and a is None for b, a, _ in pairs)
    if lost_scores and decision == "PASS":
        # An adapter that breaks down on the items it is worst at must not pass without them.
        decision = "INCONCLUSIVE"
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return TaskVerdict(
        task=task.name,
        unit=task.unit,
        higher_is_better=task.higher_is_better,
        decision=decision,
        base=float(before.mean()),
        adapter=float(after.mean()),
        interval=interval,
        margin=task.margin,
        why=task.why,
        missing=len(pairs) - len(scored),
        won=int((differences > 0).sum()),
        lost=int((differences < 0).sum()),
        items_needed=items_needed(interval, deviation, task.margin or 0.0)
        if decision == "INCONCLUSIVE"
        else None,
    )


def _number(score: float | None) -> float | None:
    """A score that can be compared; a loss that overflowed is no number."""
    return score if score is not None and math.isfinite(score) else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
