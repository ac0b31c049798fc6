"""Verdict on a recipe: what several seeds of it gain and keep, over seeds and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.evaluation.comparisons import decide
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.pairs import pair
from lora_kit.evaluation.suite import Suite, SuiteRole
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import finite
from lora_kit.statistics.decisions import Decision, combine_decisions
from lora_kit.statistics.seeds import SeedComparison, compare_seeds

SEEDS = "seeds.json"
"""Record of the seeds, in the directory of their runs."""
# Entries of base and adapter of one seed: by arm and item.
SeedEntries = Mapping[str, Mapping[str, Entry]]


@dataclass(frozen=True)
class SeedTask:
    """A recipe's effect on one task.

    Attributes:
        suite: name of the suite.
        role: role of the suite.
        task: name of the task.
        unit: unit of the scores.
        margin: margin of retention; `None` for gain.
        base: mean score of the base.
        effect: effect over seeds and items.
        decision: the effect's decision, or INCONCLUSIVE where the items cannot show it.
        reason: why it differs from the effect's; empty if it does not.
        missing: number of items that not all seeds and the base have a score on.
    """

    suite: str
    role: SuiteRole
    task: str
    unit: str
    margin: float | None
    base: float
    effect: SeedComparison
    decision: Decision
    reason: str
    missing: int


@dataclass(frozen=True)
class RecipeVerdict:
    """Verdict on a recipe.

    Attributes:
        seeds: the seeds.
        tasks: effect on each task.
        ships: seed of the adapter that ships, chosen on half A.
        directory: directory of all seeds' runs.
    """

    seeds: tuple[int, ...]
    tasks: tuple[SeedTask, ...]
    ships: int
    directory: Path

    @property
    def decision(self) -> Decision:
        """Decision on the recipe: all tasks have to pass."""
        return combine_decisions([one.decision for one in self.tasks])

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON; infinite limits are null."""
        value: dict[str, Any] = finite(
            {
                "decision": self.decision,
                "seeds": list(self.seeds),
                "ships": self.ships,
                "tasks": [asdict(one) for one in self.tasks],
            }
        )
        return value


def judge_task(suite: Suite, task: TaskSpec, seeds: Sequence[SeedEntries]) -> SeedTask:
    """Judge a recipe on one task, on the items that all seeds have a score on.

    Of a score that no single item has, such as macro-F1, that of the items is judged.

    Args:
        suite: suite of the task.
        task: the task.
        seeds: results of each seed.

    Raises:
        EvaluationError: if the seeds were asked different items, or none has a score.
    """
    plain = task.by_item()
    where = f"{suite.name}/{task.name}"
    pairs = [pair(one["base"], one[ADAPTER_ARM], plain, where) for one in seeds]
    common = set.intersection(*({entry.item for entry in one.before} for one in pairs))
    asked = len(seeds[0]["base"])
    if not common:
        raise EvaluationError(
            f"{where}: no item has a score with all seeds (got {asked} items). Fix: look at the "
            "outputs in the seeds' ledgers"
        )
    rows = [
        [d for d, entry in zip(one.differences, one.before, strict=True) if entry.item in common]
        for one in pairs
    ]
    before = [entry for entry in pairs[0].before if entry.item in common]
    effect = compare_seeds(
        np.array(rows, dtype=np.float64),
        [entry.cluster for entry in before],
        suite.alpha,
        task.margin,
        all(one.binary for one in pairs),
    )
    # Each seed's own items have to be able to show a loss.
    decision, reason = next(
        (found for one in pairs if (found := decide(one, effect.decision, plain))[1]),
        (effect.decision, ""),
    )
    base = float(np.mean([entry.score for entry in before if entry.score is not None]))
    return SeedTask(
        suite.name, suite.role, task.name, plain.unit, task.margin, base, effect, decision, reason,
        asked - len(common),
    )  # fmt: skip
