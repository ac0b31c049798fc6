"""Where results come from, task by task: a ledger on disk, or a list of entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from lora_kit.evaluation.ledger import Entry

T = TypeVar("T")
ADAPTER = "adapter"
"""The arm that is judged."""


class Source(Protocol):
    """Results of which one task's are looked at at a time, and texts only where they are wanted."""

    def scores(self, suite: str, task: str) -> Mapping[str, Mapping[str, float | None]]:
        """Scores of a task by arm and item."""
        ...

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """Whether one of these arms has put out anything on the task."""
        ...

    def arms(
        self, suite: str, task: str, texts: Collection[str] = ()
    ) -> Mapping[str, Mapping[str, Entry]]:
        """Entries of a task by arm and item; texts besides those named may be left empty."""
        ...

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """Whole entries of some arms and items of a task, in any order."""
        ...


class Listed:
    """Entries that are in memory."""

    def __init__(self, entries: Sequence[Entry]):
        found: dict[tuple[str, str], dict[str, dict[str, Entry]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for entry in entries:
            found[entry.suite, entry.task][entry.arm][entry.item] = entry
        self._found = found

    def scores(self, suite: str, task: str) -> dict[str, dict[str, float | None]]:
        """See `Source`."""
        arms = self._found[suite, task]
        return {arm: {n: entry.score for n, entry in of.items()} for arm, of in arms.items()}

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """See `Source`."""
        found = self._found[suite, task]
        return any(entry.output for arm in arms for entry in found.get(arm, {}).values())

    def arms(
        self,
        suite: str,
        task: str,
        texts: Collection[str] = (),  # noqa: ARG002 - all are there
    ) -> Mapping[str, Mapping[str, Entry]]:
        """See `Source`."""
        return self._found[suite, task]

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """See `Source`."""
        wanted = frozenset(items)
        for arm in arms:
            for item, entry in self._found[suite, task].get(arm, {}).items():
                if item in wanted:
                    yield entry


class InPlaceOfAdapter:
    """Base and one other arm, which stands where the adapter does and is judged as it is."""

    def __init__(self, source: Source, arm: str):
        self._source = source
        self._names = {"base": "base", ADAPTER: arm}

    def scores(self, suite: str, task: str) -> dict[str, Mapping[str, float | None]]:
        """See `Source`."""
        return self._renamed(self._source.scores(suite, task))

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """See `Source`."""
        own = [name for arm, name in self._names.items() if arm in arms]
        return self._source.has_outputs(suite, task, own)

    def arms(
        self, suite: str, task: str, texts: Collection[str] = ()
    ) -> dict[str, Mapping[str, Entry]]:
        """See `Source`."""
        return self._renamed(self._source.arms(suite, task, texts))

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """See `Source`."""
        for arm, name in self._names.items():
            if arm in arms:
                for entry in self._source.entries(suite, task, [name], items):
                    yield replace(entry, arm=arm)

    def _renamed(self, arms: Mapping[str, T]) -> dict[str, T]:
        return {arm: arms[name] for arm, name in self._names.items() if name in arms}


def source_of(results: Source | Sequence[Entry]) -> Source:
    """Results as what can be asked for task by task."""
    return Listed(results) if isinstance(results, Sequence) else results
