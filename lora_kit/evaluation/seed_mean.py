"""View of several adapters of one recipe: the mean of their scores, item by item."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.ledger_view import ADAPTER_ARM, LedgerView
from lora_kit.evaluation.pairs import has_score
from lora_kit.evaluation.suite import Suite


class SeedMean:
    """View in which the adapter's score on an item is the mean over adapters of several seeds.

    An item without a score of one of them has none. Outputs are those of the first adapter.
    """

    def __init__(self, views: Sequence[LedgerView]):
        self._views = views

    def scores(self, suite: str, task: str) -> dict[str, dict[str, float | None]]:
        """See `LedgerView`."""
        arms = self.arms(suite, task)
        return {
            arm: {item: entry.score for item, entry in entries.items()}
            for arm, entries in arms.items()
        }

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """See `LedgerView`."""
        return self._views[0].has_outputs(suite, task, arms)

    def arms(
        self, suite: str, task: str, texts: Collection[str] = ()
    ) -> dict[str, Mapping[str, Entry]]:
        """See `LedgerView`."""
        found = [view.arms(suite, task, texts) for view in self._views]
        means = {
            item: _mean([arms[ADAPTER_ARM][item] for arms in found])
            for item in found[0][ADAPTER_ARM]
        }
        return {"base": found[0]["base"], ADAPTER_ARM: means}

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """See `LedgerView`."""
        return self._views[0].entries(suite, task, arms, items)


def _mean(entries: Sequence[Entry]) -> Entry:
    scores = [entry.score for entry in entries if entry.score is not None and has_score(entry)]
    score = float(np.mean(scores)) if len(scores) == len(entries) else None
    return replace(entries[0], score=score)


def without_binary_scores(suites: Sequence[Suite], seeds: int) -> list[Suite]:
    """Return suites whose scores are judged as means over several answers, not as right or wrong.

    Args:
        suites: the suites.
        seeds: number of adapters whose scores are averaged.
    """
    if seeds == 1:
        return list(suites)
    return [
        suite.model_copy(
            update={
                "tasks": [
                    task.by_item().model_copy(update={"samples": seeds * task.samples})
                    for task in suite.tasks
                ]
            }
        )
        for suite in suites
    ]
