"""Search for groups of dependent rows that are on both sides of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lora_kit.data.audit.findings import EXAMPLES, SharedGroups
from lora_kit.data.audit.item import VALIDATION, AuditedItem
from lora_kit.data.rows import Row


class GroupSearch:
    """Streaming search for the clusters of held-out rows and gain items in training rows.

    Memory grows with the items, not with the rows.
    """

    def __init__(self, items: Sequence[AuditedItem]):
        self._items: dict[tuple[str, str], list[str]] = defaultdict(list)
        for item in items:
            if item.gain or item.suite == VALIDATION:
                self._items[item.suite, item.task].append(item.cluster)
        self._wanted = {cluster for clusters in self._items.values() for cluster in clusters}
        self._found: set[str] = set()

    def update(self, block: Sequence[Row]) -> None:
        """Search a block of training rows.

        A row without a cluster is one of its own, named by its origin; copies of such rows are
        leaks.
        """
        named = {row.cluster for row in block if row.cluster != row.origin}
        self._found |= named & self._wanted

    def result(self) -> tuple[SharedGroups, ...]:
        """Return the tasks, and held-out rows, of which clusters are in training rows."""
        found = []
        for (suite, task), clusters in self._items.items():
            shared = [cluster for cluster in clusters if cluster and cluster in self._found]
            if shared:
                names = tuple(dict.fromkeys(shared))[:EXAMPLES]
                found.append(SharedGroups(suite, task, len(clusters), len(shared), names))
        return tuple(found)
