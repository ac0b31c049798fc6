"""Views of results, read one task at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from lora_kit.evaluation.ledger import Entry

T = TypeVar("T")
ADAPTER_ARM = "adapter"
"""Name of the arm that is judged against the base."""


class LedgerView(Protocol):
    """Results that are read one task at a time, with texts only on request."""

    def scores(self, suite: str, task: str) -> Mapping[str, Mapping[str, float | None]]:
        """Return the scores of a task by arm and item."""
        ...

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """Return true if one of these arms has a non-empty output on the task."""
        ...

    def arms(
        self, suite: str, task: str, texts: Collection[str] = ()
    ) -> Mapping[str, Mapping[str, Entry]]:
        """Return the entries of a task by arm and item; texts not requested may be empty."""
        ...

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """Yield complete entries of the given arms and items of a task, in any order."""
        ...


class ArmAsAdapter:
    """View that presents another arm under the name `adapter`, so that it is judged instead.

    Only the base and that arm are visible.
    """

    def __init__(self, view: LedgerView, arm: str):
        self._view = view
        self._names = {"base": "base", ADAPTER_ARM: arm}

    def scores(self, suite: str, task: str) -> dict[str, Mapping[str, float | None]]:
        """See `LedgerView`."""
        return self._renamed(self._view.scores(suite, task))

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """See `LedgerView`."""
        own = [name for arm, name in self._names.items() if arm in arms]
        return self._view.has_outputs(suite, task, own)

    def arms(
        self, suite: str, task: str, texts: Collection[str] = ()
    ) -> dict[str, Mapping[str, Entry]]:
        """See `LedgerView`."""
        return self._renamed(self._view.arms(suite, task, texts))

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """See `LedgerView`."""
        for arm, name in self._names.items():
            if arm in arms:
                for entry in self._view.entries(suite, task, [name], items):
                    yield replace(entry, arm=arm)

    def _renamed(self, arms: Mapping[str, T]) -> dict[str, T]:
        return {arm: arms[name] for arm, name in self._names.items() if name in arms}
