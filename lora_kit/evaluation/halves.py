"""Split all items into two independent halves: one to choose on, one to prove the choice on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.planning import part_of
from lora_kit.evaluation.engine.work import Work
from lora_kit.runtime.errors import EvaluationError
from lora_kit.statistics.halves import MIN_CLUSTERS, fewest_clusters, first_half


@dataclass(frozen=True)
class Halves:
    """Tasks with one half of their items each.

    Attributes:
        a: half on which one of several is chosen.
        b: half on which the chosen one is proved.
    """

    a: tuple[Work, ...]
    b: tuple[Work, ...]

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Number of items in half A and in half B, by task."""
        both = zip(self.a, self.b, strict=True)
        return {a.name: (len(a.task.items), len(b.task.items)) for a, b in both}


def halve(work: Sequence[Work], backbone: Backbone) -> Halves:
    """Split the items of all tasks into two halves.

    Args:
        work: tasks with all their items.
        backbone: backbone whose tokenizer batches the items.

    Raises:
        EvaluationError: if a task has too few clusters.
    """
    clusters = {one.name: [item.cluster for item in one.task.items] for one in work}
    first = first_half(clusters)
    _require_enough_clusters(clusters, first)
    halves: tuple[list[Work], list[Work]] = ([], [])
    for one in work:
        for half, is_first in zip(halves, (True, False), strict=True):
            ids = {i.id for i in one.task.items if (i.cluster in first) == is_first}
            half.append(part_of(one, ids, backbone))
    return Halves(tuple(halves[0]), tuple(halves[1]))


def _require_enough_clusters(tasks: Mapping[str, Sequence[str]], first: frozenset[str]) -> None:
    for task, clusters in tasks.items():
        names = set(clusters)
        if fewest_clusters(names, first) < MIN_CLUSTERS:
            needed = max(2 * MIN_CLUSTERS, len(names) + 1)
            raise EvaluationError(
                f"{task}: too few clusters for two halves (got {len(clusters)} items in "
                f"{len(names)} clusters; two halves need at least {needed}, {MIN_CLUSTERS} in each "
                "half; an item that depends on no other is a cluster). Fix: raise the task's "
                "`limit`, or give suites with more items by --suite"
            )
