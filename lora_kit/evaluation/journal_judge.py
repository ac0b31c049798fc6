"""Judging between looks: from the journals of all processes to the tasks that have ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lora_kit.evaluation.arm_names import is_shipped
from lora_kit.evaluation.assembly import SHARE_OUTPUT, ResultPart
from lora_kit.evaluation.engine.journal import Journals
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.stopping import LookPlan, TaskEnd, end_at, merged_end, until_look
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.processes import broadcast_from_main


@dataclass(frozen=True)
class JournalJudge:
    """Judge between looks; the main process reads and judges for all.

    Attributes:
        journals: journals of all processes; `None` on other processes than the main one.
        parts: results of the evaluation.
        suites: suites of the tasks.
        plan: looks at the tasks.
    """

    journals: Journals | None
    parts: Sequence[ResultPart]
    suites: Sequence[Suite]
    plan: LookPlan

    def ended(self, asked: Mapping[str, int]) -> Collection[str]:
        """See `PathJudge`."""

        def judge() -> set[str]:
            self._refresh()
            ends = {name: self._end(name, look) for name, look in asked.items()}
            return {name for name, end in ends.items() if end and end.reason != "stopped too soon"}

        return broadcast_from_main(judge)

    def undecided_merged(self, ended: Mapping[str, int]) -> Collection[str]:
        """See `PathJudge`."""
        if not any(is_shipped(part.arm) for part in self.parts):
            return set()

        def judge() -> set[str]:
            self._refresh()
            return {name for name, look in ended.items() if self._merged_until(name, look) > look}

        return broadcast_from_main(judge)

    def _refresh(self) -> None:
        assert self.journals is not None
        self.journals.refresh()

    def _end(self, name: str, look: int) -> TaskEnd | None:
        """Judge the adapter at a look; `None` if no item has a score in both arms yet."""
        suite, task = self._task(name)
        looks = self.plan.looks(suite, task)
        arms = self._arms(name, ("base", "adapter"), look)
        try:
            return end_at(arms["base"], arms["adapter"], suite, task, looks.look(look))
        except EvaluationError:
            return None

    def _merged_until(self, name: str, look: int) -> int:
        suite, task = self._task(name)
        looks = self.plan.looks(suite, task)
        end = self._end(name, look)
        if end is None or look == len(looks):
            return look
        shipped = {part.arm for part in self.parts if is_shipped(part.arm)}
        arms = self._arms(name, {"base", *shipped}, look)
        return merged_end(arms, suite, task, looks, end)[0]

    def _arms(self, name: str, arms: Collection[str], look: int) -> dict[str, dict[str, Entry]]:
        """Return the entries of a task until a look, by arm and item.

        Raises:
            EvaluationError: if an entry is in no journal.
        """
        assert self.journals is not None
        wanted = self.plan.tasks[name].items[look - 1]
        found = {}
        for part in self.parts:
            if part.name != name or part.arm not in arms:
                continue
            entries = {entry.item: entry for entry in self.journals.entries(part.key)}
            found[part.arm] = until_look(entries, look)
            if missing := wanted - len(found[part.arm]):
                raise EvaluationError(
                    f"{name}: not all processes write to the same directory (got {missing:,} of "
                    f"{wanted:,} results of arm {part.arm} that are in no journal). {SHARE_OUTPUT}"
                )
        return found

    def _task(self, name: str) -> tuple[Suite, TaskSpec]:
        return next(
            (suite, task)
            for suite in self.suites
            for task in suite.tasks
            if f"{suite.name}/{task.name}" == name
        )
