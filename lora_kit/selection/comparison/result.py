"""Result of a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.suite import SuiteRole
from lora_kit.runtime.files import finite
from lora_kit.selection.comparison.curves import Losses
from lora_kit.selection.comparison.differences import RunDifference
from lora_kit.selection.comparison.recipes import FieldRow
from lora_kit.statistics.decisions import Decision, Interval, combine_decisions

MAX_RUNS = 8
"""Largest number of runs of which all pairs are shown, and of lines in a plot."""

TextKey = tuple[int, str, str, str]


@dataclass(frozen=True)
class ComparedRun:
    """Run of a comparison.

    Attributes:
        name: name that no other run has.
        path: run directory.
        chosen: reason why this one was chosen on half A, in words; empty if it was not.
        items: items of its verdict in words; empty if they are no known half.
        adapter: sha256 of the adapter's weights; empty if it is not recorded.
        losses: losses of its training.
    """

    name: str
    path: Path
    chosen: str
    items: str
    adapter: str
    losses: Losses


@dataclass(frozen=True)
class TaskCell:
    """Result of a run on a task, against its base.

    Attributes:
        base: score of the base.
        adapter: score of the adapter.
        interval: interval of the difference, at the confidence of the decision.
        decision: decision, as in the run's verdict.
        reason: reason for a decision other than the one that the interval implies; else empty.
    """

    base: float
    adapter: float
    interval: Interval
    decision: Decision
    reason: str


@dataclass(frozen=True)
class ComparedTask:
    """Task with the result of each run.

    Attributes:
        name: name that no other task has.
        suite: name of the suite.
        digest: digest of the suite.
        role: role of the suite.
        task: name of the task.
        unit: unit of the scores.
        higher_is_better: true if a higher score is better.
        cells: result of each run; `None` for a run without results on the task.
    """

    name: str
    suite: str
    digest: str
    role: SuiteRole
    task: str
    unit: str
    higher_is_better: bool
    cells: tuple[TaskCell | None, ...]

    @property
    def suite_label(self) -> str:
        """Name of the suite, with its digest where another definition has the same name."""
        return self.name.replace(f"/{self.task}", "", 1)


@dataclass(frozen=True)
class LeftOut:
    """Part of the results that is not compared.

    Attributes:
        subject: suite or task, with the runs.
        reason: reason in words.
    """

    subject: str
    reason: str


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    Attributes:
        runs: the runs.
        tasks: tasks of all suites.
        differences: differences of all pairs and tasks, by their adjusted p-values.
        best: number of the run that gains most, or was chosen; `None` if they share no gain task.
        left_out: results that are not compared, with the reasons.
        recipes: fields in which the recipes differ.
        setup: facts of the trainings.
        texts: complete entries of changed items of the shown pairs, by run, suite (name, digest),
            task and item.
    """

    runs: tuple[ComparedRun, ...]
    tasks: tuple[ComparedTask, ...]
    differences: tuple[RunDifference, ...]
    best: int | None
    left_out: tuple[LeftOut, ...]
    recipes: tuple[FieldRow, ...]
    setup: tuple[FieldRow, ...]
    texts: Mapping[TextKey, Mapping[str, Entry]]

    @property
    def shows_all(self) -> bool:
        """True if all pairs are shown; else those with the first run and with the best one."""
        return len(self.runs) <= MAX_RUNS

    @property
    def shown(self) -> list[RunDifference]:
        """Differences of the shown pairs."""
        return [one for one in self.differences if self.shows(one.pair)]

    def shows(self, pair: tuple[int, int]) -> bool:
        """Return true if a pair of runs is shown."""
        return self.shows_all or bool({0, self.best} & set(pair))

    @property
    def best_reason(self) -> str:
        """Reason why the best run is called so, as a clause."""
        if self.best is None:
            return ""
        if self.runs[self.best].chosen:
            return f"the {self.runs[self.best].chosen}"
        if keeps_retention(self.tasks, self.best):
            return "which gains most of those that keep all retention tasks"
        return "which gains most; none keeps all retention tasks"

    def decision(self, run: int) -> Decision:
        """Return the decision on a run: all of its tasks have to pass."""
        return combine_decisions([cell.decision for one in self.tasks if (cell := one.cells[run])])

    def task_of(self, difference: RunDifference) -> ComparedTask:
        """Return the task of a difference."""
        key = (difference.suite, difference.digest, difference.task)
        return next(one for one in self.tasks if (one.suite, one.digest, one.task) == key)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON; infinite limits are null."""
        value: dict[str, Any] = finite(
            {
                "runs": [
                    {
                        "name": one.name,
                        "path": str(one.path),
                        "chosen": one.chosen,
                        "items": one.items,
                        "adapter": one.adapter,
                        "decision": self.decision(number),
                    }
                    for number, one in enumerate(self.runs)
                ],
                "best": None if self.best is None else self.runs[self.best].name,
                "tasks": [asdict(one) for one in self.tasks],
                "differences": [
                    asdict(one)
                    | {
                        "first": self.runs[one.first].name,
                        "second": self.runs[one.second].name,
                        "better": None if one.better is None else self.runs[one.better].name,
                        "shown": self.shows(one.pair),
                    }
                    for one in self.differences
                ],
                "left_out": [asdict(one) for one in self.left_out],
                "recipes": _by_run(self.recipes),
                "setup": _by_run(self.setup),
            }
        )
        return value


def keeps_retention(tasks: Sequence[ComparedTask], run: int) -> bool:
    """Return true if a run passes all retention tasks; a task without a result is not passed."""
    kept = [one.cells[run] for one in tasks if one.role == "retention"]
    return all(cell is not None and cell.decision == "PASS" for cell in kept)


def _by_run(rows: tuple[FieldRow, ...]) -> dict[str, list[str]]:
    return {row.name: list(row.values) for row in rows}
