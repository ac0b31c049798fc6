"""Two independent halves of all items: one to choose on, one to prove the choice on.

Clusters are split, not items, since the items of a cluster are dependent: a choice that is lucky
with part of a file in one half would be lucky with the rest of it in the other. For the same reason
a cluster is in the same half in every task: one task may score the likelihood of docstrings from
files that another task asks about.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from itertools import zip_longest

MIN_CLUSTERS = 5
"""Least number of clusters in each half of a task. With fewer, intervals span the whole range of
the score."""


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


def fewest_clusters(clusters: Set[str], first: Set[str]) -> int:
    """Return the number of a task's clusters in the half that has fewer of them."""
    return min(len(clusters & first), len(clusters - first))
