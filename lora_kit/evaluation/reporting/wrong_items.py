"""Items that the adapter got wrong, by class, for the report."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.ledger_view import ADAPTER_ARM, LedgerView
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict

MAX_WRONG = 200
"""Maximum number of wrong items of a class whose texts are in the page."""


@dataclass(frozen=True)
class WrongClass:
    """Items of one class that the adapter got wrong.

    Attributes:
        label: true class of the items; of items with several labels or entities, one that is
            missing or too much, or its type.
        shown: entries of the adapter for the first of them, by id.
        total: number of all of them.
    """

    label: str
    shown: tuple[Entry, ...]
    total: int


def find_wrong(view: LedgerView, verdict: Verdict) -> tuple[tuple[WrongClass, ...], ...]:
    """Return the wrong items of each task by class, the class with the most of them first.

    Args:
        view: results of the adapter.
        verdict: verdict on the results, which sets the order of tasks; tasks without classes have
            no wrong items.
    """
    return tuple(
        _wrong_of(view, suite.suite, task) if task.classes else ()
        for suite, task in verdict.shown_tasks
    )


def _wrong_of(view: LedgerView, suite: str, task: TaskVerdict) -> tuple[WrongClass, ...]:
    assert task.classes is not None  # the caller selects such tasks
    has_several = task.classes.confusion is None
    entries = view.arms(suite, task.task, ("output", "reference")).get(ADAPTER_ARM, {})
    by_class: dict[str, list[str]] = defaultdict(list)
    for item in sorted(entries):
        entry = entries[item]
        if entry.score is not None:
            for label in _wrong_labels(entry) if has_several else _wrong_class(entry):
                by_class[label].append(item)
    shown = {item for items in by_class.values() for item in items[:MAX_WRONG]}
    texts = {e.item: e for e in view.entries(suite, task.task, (ADAPTER_ARM,), sorted(shown))}
    found = [
        WrongClass(label, tuple(texts[item] for item in items[:MAX_WRONG]), len(items))
        for label, items in by_class.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.total, one.label)))


def _wrong_class(entry: Entry) -> Iterator[str]:
    if entry.output != entry.reference:
        yield entry.reference


def _wrong_labels(entry: Entry) -> Iterable[str]:
    """Return the labels, or the types of the entities, that are missing or too much."""
    given, true = (
        {one if isinstance(one, str) else tuple(one) for one in json.loads(text)}
        for text in (entry.output, entry.reference)
    )
    # An entity begins with its type.
    return sorted({one if isinstance(one, str) else one[0] for one in given ^ true})
