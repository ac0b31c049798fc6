"""Split all items into two independent halves: one to choose a scale on, one to prove it on.

Clusters are split, not items, since the items of a cluster are dependent: a scale that is lucky
with part of a file in one half would be lucky with the rest of it in the other. For the same reason
a cluster is in the same half in every task: one task may score the likelihood of docstrings from
files that another task asks about.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.engine.work import Work, part_of
from lora_kit.runtime.errors import EvaluationError

# Least number of clusters in each half of a task. With fewer, intervals span the whole range of the
# score.
MIN_CLUSTERS = 5


@dataclass(frozen=True)
class Halves:
    """Tasks with one half of their items each.

    Attributes:
        a: half on which the scale is chosen.
        b: half on which the chosen scale is proved.
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


def first_half(tasks: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the clusters of the first half; the split depends only on their names and sizes.

    Clusters of the same tasks and of similar size are paired, and one of each pair goes to each
    half. The larger one goes to the half that is behind; a hash of its name decides where neither
    is. The halves of a task differ by at most one item if each item is its own cluster (by a few,
    where tasks share some of their clusters), else by no more than the largest cluster.

    Args:
        tasks: cluster of each item, by task.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task, clusters in tasks.items():
        for cluster in clusters:
            counts[cluster][task] += 1
    by_tasks: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for cluster, count in counts.items():
        by_tasks[tuple(sorted(count))].append(cluster)
    first: set[str] = set()
    # Items in the first half minus items in the second, by task.
    lean: Counter[str] = Counter()
    # Clusters of most tasks first: the rest can then be evened out task by task.
    for _, group in sorted(by_tasks.items(), key=lambda one: (-len(one[0]), one[0])):
        group.sort(key=lambda cluster: (-counts[cluster].total(), _digest(cluster)))
        for larger, smaller in zip_longest(group[::2], group[1::2]):
            change = Counter(counts[larger])
            change.subtract(counts[smaller] if smaller else {})
            tilt = sum(lean[task] * items for task, items in change.items())
            if tilt < 0 or (tilt == 0 and _digest(larger)[0] % 2):
                first.add(larger)
                lean.update(change)
            else:
                first.update([smaller] if smaller else [])
                lean.subtract(change)
    return frozenset(first)


def _digest(cluster: str) -> bytes:
    return hashlib.sha256(cluster.encode()).digest()


def _require_enough_clusters(tasks: Mapping[str, Sequence[str]], first: frozenset[str]) -> None:
    for task, clusters in tasks.items():
        names = set(clusters)
        fewest = min(len(names & first), len(names - first))
        if fewest < MIN_CLUSTERS:
            needed = max(2 * MIN_CLUSTERS, len(names) + 1)
            raise EvaluationError(
                f"{task}: too few clusters for two halves (got {len(clusters)} items in "
                f"{len(names)} clusters; rescale needs at least {needed}, {MIN_CLUSTERS} in each "
                "half; an item that depends on no other is a cluster). Fix: raise the task's "
                "`limit`, or give suites with more items by --suite"
            )
