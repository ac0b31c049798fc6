"""Evaluation work: a task with its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lora_kit.evaluation.engine.outcome_cache import numeric_environment
from lora_kit.evaluation.grading import GRADING_VERSION, grading_code
from lora_kit.evaluation.item import Graded, Item, Outcome, Task
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.stopping import (
    LookPlan,
    PlannedTask,
    Stopping,
)
from lora_kit.evaluation.suite import Suite
from lora_kit.runtime.hashes import json_sha256
from lora_kit.runtime.processes import process_state


@dataclass(frozen=True)
class Work:
    """A task with its batches.

    Attributes:
        suite: suite of the task.
        task: task with its items.
        batches: item indexes of each batch, the same for every arm; those of a look together.
        digest: digest of the task's items.
        variants: the same items with other requests, and their digest, by arm (`fewshot`).
        has_encoder: true for an encoder-decoder backbone.
        batch_looks: number of the look that asks each batch, from 1; empty if there is one look.
    """

    suite: Suite
    task: Task
    batches: tuple[tuple[int, ...], ...]
    digest: str
    variants: Mapping[str, tuple[Task, str]] = field(default_factory=dict)
    has_encoder: bool = False
    batch_looks: tuple[int, ...] = ()

    @property
    def looks(self) -> int:
        """Number of looks at the items."""
        return max(self.batch_looks, default=1)

    def look_of(self, item: str) -> int:
        """Return the number of the look that asks an item, from 1."""
        return self._look_by_item.get(item, 1)

    @cached_property
    def _look_by_item(self) -> Mapping[str, int]:
        asked = zip(self.batches, self.batch_looks, strict=False)
        return {self.task.items[n].id: look for batch, look in asked for n in batch}

    def batches_of(self, looks: range) -> tuple[tuple[int, ...], ...]:
        """Return the batches that some looks ask, counted from 1."""
        if not self.batch_looks:
            return self.batches if 1 in looks else ()
        return tuple(
            batch
            for batch, look in zip(self.batches, self.batch_looks, strict=True)
            if look in looks
        )

    @property
    def name(self) -> str:
        """Name of the suite and the task."""
        return f"{self.suite.name}/{self.task.spec.name}"

    def task_for(self, arm: str) -> Task:
        """Return the task with the requests for an arm."""
        return self.variants[arm][0] if arm in self.variants else self.task

    def entry(
        self, arm: str, item: Item, graded: Graded, outcome: Outcome, seconds: float = 0.0
    ) -> Entry:
        """Return an arm's result on an item as an entry of the ledger.

        Args:
            arm: arm that answered.
            item: item of this work.
            graded: grade of the outcome.
            outcome: result of the requests of the arm.
            seconds: time of the batch divided by its items.
        """
        return Entry(
            arm=arm,
            suite=self.suite.name,
            task=self.task.spec.name,
            item=item.id,
            cluster=item.cluster,
            score=graded.score,
            output=graded.output,
            prompt=item.prompt,
            reference=item.reference,
            tokens=outcome.tokens,
            seconds=seconds,
            slices=item.slices,
            measures=graded.measures,
            log_likelihoods=outcome.log_likelihoods if item.choices else (),
            choices=item.choices,
            answer=item.answer,
            look=self.look_of(item.id),
        )

    def key(self, arm: str, identity: str) -> str:
        """Return a digest of everything that an arm's results on this task depend on."""
        items = self.variants[arm][1] if arm in self.variants else self.digest
        spec = self.task.spec.model_dump(mode="json")
        computation = [numeric_environment(process_state().device), self.batches, self.batch_looks]
        grading = [GRADING_VERSION, grading_code(self.task.spec)]
        return json_sha256([arm, identity, self.suite.name, spec, items, computation, grading])


def look_plan(work: Sequence[Work], stopping: Stopping) -> LookPlan:
    """Return the looks at all tasks of the work, which was planned with `stopping`."""
    sizes = {}
    for one in work:
        looks = [one.look_of(item.id) for item in one.task.items]
        items = tuple(sum(asked <= n for asked in looks) for n in range(1, one.looks + 1))
        sizes[one.name] = PlannedTask(len({item.cluster for item in one.task.items}), items)
    return LookPlan(stopping, sizes)


def suites_of(work: Sequence[Work]) -> list[Suite]:
    """Return the suites of the work, in order and without duplicates."""
    return list({one.suite.name: one.suite for one in work}.values())
