"""Assembly of a ledger: the results that an evaluation needs, and those already stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from lora_kit.evaluation.engine import drift
from lora_kit.evaluation.engine.arm import LoadedArms
from lora_kit.evaluation.engine.journal import REUSED, Journal, Journals, journal_path
from lora_kit.evaluation.engine.run import TaskPath
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.ledger import DRIFT, Entry, Ledger
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json

LEDGER = "ledger.parquet"
VERDICT = "verdict.json"
# Entries copied at a time, to bound memory.
COPY_BATCH_ENTRIES = 1_000
SHARE_OUTPUT = "Fix: give an output directory that all machines share"


@dataclass(frozen=True)
class ResultPart:
    """Results of one arm on one task.

    Attributes:
        key: digest of everything that the results depend on.
        items: ids of the items that need a result.
    """

    key: str
    suite: str
    task: str
    arm: str
    items: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the suite and the task."""
        return f"{self.suite}/{self.task}"


def result_parts(models: Sequence[LoadedArms], work: Sequence[Work]) -> list[ResultPart]:
    """Return the parts of an evaluation, ordered by task and arm."""
    parts: dict[str, ResultPart] = {}
    for one in work:
        ids = tuple(item.id for item in one.task.items)
        for loaded in models:
            for arm in loaded.arms:
                if arm.applies_to(one):
                    part = _part(one, one.key(arm.name, arm.identity), arm.name, ids)
                    parts[part.key] = part
            if loaded.drift_identity:
                drift_ids = tuple(item.id for item in drift.drift_items(one))
                part = _part(one, one.key(DRIFT, loaded.drift_identity), DRIFT, drift_ids)
                parts[part.key] = part
    # All tasks list their arms in the same order, also tasks that lack some of the arms.
    arms = [*dict.fromkeys(part.arm for part in parts.values())]
    tasks = [(one.suite.name, one.task.spec.name) for one in work]
    place = {task: n for n, task in enumerate(tasks)}
    return sorted(parts.values(), key=lambda p: (place[p.suite, p.task], arms.index(p.arm)))


def asked_parts(
    parts: Sequence[ResultPart], work: Sequence[Work], paths: Mapping[str, TaskPath]
) -> list[ResultPart]:
    """Return the parts with the items that were asked until each task's end."""
    by_name = {one.name: one for one in work}
    return [
        replace(
            part,
            items=tuple(
                item
                for item in part.items
                if by_name[part.name].look_of(item) <= paths[part.name].last_look(part.arm)
            ),
        )
        for part in parts
    ]


def _part(work: Work, key: str, arm: str, items: tuple[str, ...]) -> ResultPart:
    return ResultPart(key, work.suite.name, work.task.spec.name, arm, items)


def insert_part(parts: Sequence[ResultPart], new: ResultPart) -> list[ResultPart]:
    """Insert a part behind the other parts of its task."""
    same = [n for n, part in enumerate(parts) if (part.suite, part.task) == (new.suite, new.task)]
    position = same[-1] + 1 if same else len(parts)
    return [*parts[:position], new, *parts[position:]]


def stored_items(directory: Path, parts: Sequence[ResultPart]) -> dict[str, set[str]]:
    """Return the item ids that the ledger of an earlier evaluation holds for each key."""
    ids: dict[str, set[str]] = {part.key: set() for part in parts}
    try:
        stored = read_json(directory / VERDICT, EvaluationError).get("keys", {})
        places = {key: tuple(place) for key, place in stored.items() if key in ids}
        ledger = Ledger(directory / LEDGER) if places else None
        for key, (suite, task, arm) in places.items():
            assert ledger is not None
            ids[key] = set(ledger.scores(suite, task).get(arm, {}))
    except (EvaluationError, AttributeError, TypeError, ValueError):
        pass  # no ledger, or one of another version: everything is measured
    return ids


def copy_stored(directory: Path, parts: Sequence[ResultPart], items: dict[str, set[str]]) -> None:
    """Copy results of an earlier ledger that are reused into a journal.

    Args:
        directory: evaluation directory.
        parts: parts of the evaluation.
        items: ids of the items to copy, by key.
    """
    if not any(items.values()):
        return
    journal, ledger = Journal(directory, REUSED), Ledger(directory / LEDGER)
    stored = read_json(directory / VERDICT, EvaluationError)["keys"]
    for part in parts:
        if not items[part.key]:
            continue
        suite, task, arm = stored[part.key]
        entries = ledger.entries(suite, task, [arm], items[part.key])
        while batch := [(part.key, entry) for entry in islice(entries, COPY_BATCH_ENTRIES)]:
            journal.append(batch)


def refuse_separate_directories(directory: Path, processes: int) -> None:
    """Refuse, before anything is measured, processes that write to different directories.

    Raises:
        EvaluationError: if a process has no journal in the directory.
    """
    missing = [n for n in range(processes) if not journal_path(directory, n).is_file()]
    if missing:
        numbers = ", ".join(map(str, missing))
        raise EvaluationError(
            f"{directory}: not all processes write to this directory (got no journal of process "
            f"{numbers}). {SHARE_OUTPUT}"
        )


def assembled_entries(
    directory: Path, parts: Sequence[ResultPart], journals: Journals
) -> Iterator[Entry]:
    """Yield all entries in the order of suites, tasks, arms and items.

    Raises:
        EvaluationError: before the first entry, if a result is in no journal.
    """
    missing = sum(len(set(part.items).difference(journals.items(part.key))) for part in parts)
    if missing:
        total = sum(len(part.items) for part in parts)
        raise EvaluationError(
            f"{directory}: not all processes write to this directory (got {missing:,} of "
            f"{total:,} results that are in no journal). {SHARE_OUTPUT}"
        )
    return (
        entry
        for part in parts
        for asked in [frozenset(part.items)]
        for entry in journals.entries(part.key)
        if entry.item in asked
    )
