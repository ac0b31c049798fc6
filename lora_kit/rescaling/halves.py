"""Two halves of all items that know nothing of one another: one to pick on, one to prove on.

What is split are clusters, since their items are not independent: a scale that is lucky with a
file on the one half would be lucky with the rest of that file on the other. For the same reason a
cluster goes to the same half in every task that it occurs in: the docstrings whose likelihood one
task takes are of the files that another task has described.
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

FEWEST = 5
"""Clusters that each half of a task has at least: below, every interval is as wide as the scale."""


@dataclass(frozen=True)
class Halves:
    """The same tasks twice.

    Attributes:
        a: what the scale is picked on.
        b: what it is proved on.
    """

    a: tuple[Work, ...]
    b: tuple[Work, ...]


def halve(work: Sequence[Work], backbone: Backbone) -> Halves:
    """Split all tasks.

    Raises:
        EvaluationError: if a task has too few items that do not depend on one another.
    """
    clusters = {one.name: [item.cluster for item in one.task.items] for one in work}
    first = first_half(clusters)
    _require_enough(clusters, first)
    parts: tuple[list[Work], list[Work]] = ([], [])
    for one in work:
        for part, is_first in zip(parts, (True, False), strict=True):
            ids = {i.id for i in one.task.items if (i.cluster in first) == is_first}
            part.append(part_of(one, ids, backbone))
    return Halves(tuple(parts[0]), tuple(parts[1]))


def first_half(tasks: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The clusters whose items are in the first half.

    Of two clusters of like size and of the same tasks, one goes to each half; which, their hash
    says, or the half that is behind gets the larger. So it depends on nothing but the names. Of a
    task whose items are each their own cluster the halves differ by one item at most (where tasks
    share some of their clusters, by a few), else by no more than its largest cluster.

    Args:
        tasks: the cluster of each item, by task.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for task, clusters in tasks.items():
        for cluster in clusters:
            counts[cluster][task] += 1
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for cluster, count in counts.items():
        alike[tuple(sorted(count))].append(cluster)
    first: set[str] = set()
    # Of each task, items in the first half less those in the second.
    lean: Counter[str] = Counter()
    # Those of most tasks first: what is left over can then be evened out task by task.
    for _, found in sorted(alike.items(), key=lambda one: (-len(one[0]), one[0])):
        found.sort(key=lambda cluster: (-counts[cluster].total(), _digest(cluster)))
        for one, other in zip_longest(found[::2], found[1::2]):
            change = Counter(counts[one])
            change.subtract(counts[other] if other else {})
            tilt = sum(lean[task] * items for task, items in change.items())
            if tilt < 0 or (tilt == 0 and _digest(one)[0] % 2):
                first.add(one)
                lean.update(change)
            else:
                first.update([other] if other else [])
                lean.subtract(change)
    return frozenset(first)


def _digest(cluster: str) -> bytes:
    return hashlib.sha256(cluster.encode()).digest()


def _require_enough(tasks: Mapping[str, Sequence[str]], first: frozenset[str]) -> None:
    for task, clusters in tasks.items():
        names = set(clusters)
        fewest = min(len(names & first), len(names - first))
        if fewest < FEWEST:
            raise EvaluationError(
                f"{task}: {len(clusters)} items in {len(names)} clusters; dial picks on one half "
                f"and proves on the other, with {FEWEST} clusters in each, so it takes at "
                f"least {max(2 * FEWEST, len(names) + 1)} clusters (an item that depends on no "
                "other is one). Raise the task's `limit`, or give suites with more "
                "items by --suite"
            )
