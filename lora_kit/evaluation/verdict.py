"""Verdict types: PASS, FAIL or INCONCLUSIVE per task, per suite and overall, with the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from lora_kit.evaluation.suite import SuiteRole
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.runtime.files import finite
from lora_kit.statistics.decisions import Decision

# Limits of an interval without limits, which JSON has as null.
UNBOUNDED = {"low": -math.inf, "high": math.inf}


@dataclass(frozen=True)
class SuiteVerdict:
    """Decision on a suite, all of whose tasks have to pass.

    Attributes:
        beside: tasks that do not decide.
    """

    suite: str
    role: SuiteRole
    description: str
    decision: Decision
    tasks: tuple[TaskVerdict, ...]
    beside: tuple[TaskVerdict, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Result that the reader has to know, although it does not decide.

    Attributes:
        kind: title. `negative transfer`: a baseline is significantly better than the adapter.
            `no advantage over BASELINE shown`: the difference from a baseline is not significant.
            `alarm`: a significant loss. `answers cut off`: over 10% of the answers of base or
            adapter were cut at `max_new_tokens`.
    """

    kind: str
    suite: str
    task: str
    text: str


@dataclass(frozen=True)
class MergedSelection:
    """Selection of one of several merged models.

    Attributes:
        selected_on: items that the selection used.
        proved_on: items that the decision on the selected model is based on.
        reason: reason why the first merged model is released without a selection; else empty.
        means: mean score of the released model on the items that it is proved on, by suite/task.
    """

    selected_on: str
    proved_on: str
    reason: str
    means: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """Decision over all suites, each of which has to pass.

    Attributes:
        decision: decision on the adapter.
        merged: decision on the merged model that is released, if one is an arm.
        ships: arm of that merged model.
        selection: selection of that merged model, if several are arms.
        files: decision on each exported file that is an arm, by its arm.
    """

    decision: Decision
    merged: Decision | None
    ships: str | None
    findings: tuple[Finding, ...]
    suites: tuple[SuiteVerdict, ...]
    selection: MergedSelection | None = None
    files: Mapping[str, Decision] = field(default_factory=dict)

    @property
    def tasks(self) -> list[tuple[SuiteVerdict, TaskVerdict]]:
        """Tasks of all suites, in order, each with its suite."""
        return [(suite, task) for suite in self.suites for task in suite.tasks]

    @property
    def shown_tasks(self) -> list[tuple[SuiteVerdict, TaskVerdict]]:
        """All tasks, suite by suite; those that do not decide come last."""
        return [(suite, task) for suite in self.suites for task in (*suite.tasks, *suite.beside)]

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values; infinite limits become null."""
        value: dict[str, Any] = finite(asdict(self))
        return value

    @property
    def selection_sentence(self) -> str:
        """Sentence on the selection of the merged model; empty if there was none to select from."""
        found = self.selection
        if found is None:
            return ""
        if found.reason:
            return (
                f"Of several merged models, {self.ships}, the first, is released without a "
                f"selection, and proved on {found.proved_on}: {found.reason}."
            )
        return (
            f"Of several merged models, {self.ships} was selected on {found.selected_on} and "
            f"proved on {found.proved_on}."
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """Return the verdict of JSON values; other keys are ignored.

        Raises:
            pydantic.ValidationError: if a value is missing or of another type.
        """
        return TypeAdapter(cls).validate_python(_with_infinite_limits(values))


def _with_infinite_limits(value: Any) -> Any:
    """Return JSON values with infinities where an interval has null limits."""
    if isinstance(value, Mapping):
        return {
            key: UNBOUNDED[key]
            if inner is None and key in UNBOUNDED
            else _with_infinite_limits(inner)
            for key, inner in value.items()
        }
    return [_with_infinite_limits(inner) for inner in value] if isinstance(value, list) else value
