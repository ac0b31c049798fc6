"""What an evaluation has to have, what of it is there already, and how it becomes a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lora_kit.evaluation.engine import drift
from lora_kit.evaluation.engine.arm import LoadedArms
from lora_kit.evaluation.engine.journal import KEPT, Journal, Journals, journal_path
from lora_kit.evaluation.engine.work import Work
from lora_kit.evaluation.ledger import DRIFT, Entry, Ledger
from lora_kit.runtime.errors import EvaluationError
from lora_kit.runtime.files import read_json

LEDGER = "ledger.parquet"
VERDICT = "verdict.json"
# Entries that are in memory at a time while they are copied.
COPIED = 1_000


@dataclass(frozen=True)
class Part:
    """The results of one arm on one task.

    Attributes:
        key: digest of all that they depend on.
        items: ids of those that have to have a result.
    """

    key: str
    suite: str
    task: str
    arm: str
    items: tuple[str, ...]


def parts_of(models: Sequence[LoadedArms], work: Sequence[Work]) -> list[Part]:
    """All that models have results of, in the order of tasks and arms."""
    found: dict[str, Part] = {}
    for one in work:
        ids = tuple(item.id for item in one.task.items)
        for loaded in models:
            for arm in loaded.arms:
                if arm.wants(one):
                    part = _part(one, one.key(arm.name, arm.identity), arm.name, ids)
                    found[part.key] = part
            if loaded.drifting:
                some = tuple(item.id for item in drift.drifters(one))
                part = _part(one, one.key(DRIFT, loaded.drifting), DRIFT, some)
                found[part.key] = part
    # In each task in the same order, be an arm the first one of some task or not.
    arms = [*dict.fromkeys(part.arm for part in found.values())]
    tasks = [(one.suite.name, one.task.spec.name) for one in work]
    place = {task: n for n, task in enumerate(tasks)}
    return sorted(found.values(), key=lambda p: (place[p.suite, p.task], arms.index(p.arm)))


def _part(work: Work, key: str, arm: str, items: tuple[str, ...]) -> Part:
    return Part(key, work.suite.name, work.task.spec.name, arm, items)


def with_part(parts: Sequence[Part], more: Part) -> list[Part]:
    """A part of another arm, behind those of its task."""
    same = [n for n, part in enumerate(parts) if (part.suite, part.task) == (more.suite, more.task)]
    behind = same[-1] + 1 if same else len(parts)
    return [*parts[:behind], more, *parts[behind:]]


def stored_items(directory: Path, parts: Sequence[Part]) -> dict[str, set[str]]:
    """Ids of the items that the ledger of an earlier evaluation has under each key."""
    found: dict[str, set[str]] = {part.key: set() for part in parts}
    try:
        stored = read_json(directory / VERDICT, EvaluationError).get("keys", {})
        wheres = {key: tuple(where) for key, where in stored.items() if key in found}
        ledger = Ledger(directory / LEDGER) if wheres else None
        for key, (suite, task, arm) in wheres.items():
            assert ledger is not None
            found[key] = set(ledger.scores(suite, task).get(arm, {}))
    except (EvaluationError, AttributeError, TypeError, ValueError):
        pass  # none, or of another version: everything is measured
    return found


def keep_stored(directory: Path, parts: Sequence[Part], wanted: dict[str, set[str]]) -> None:
    """Copy what of an earlier ledger is used again into a journal.

    Args:
        directory: of the evaluation.
        parts: of it.
        wanted: by key, ids of the items whose results are to be copied.
    """
    if not any(wanted.values()):
        return
    journal, ledger = Journal(directory, KEPT), Ledger(directory / LEDGER)
    stored = read_json(directory / VERDICT, EvaluationError)["keys"]
    for part in parts:
        if not wanted[part.key]:
            continue
        suite, task, arm = stored[part.key]
        entries = ledger.entries(suite, task, [arm], wanted[part.key])
        while some := [(part.key, entry) for entry in islice(entries, COPIED)]:
            journal.append(some)


def refuse_separate_directories(directory: Path, processes: int) -> None:
    """Refuse before anything is measured.

    Raises:
        EvaluationError: if a process has opened its journal somewhere else.
    """
    lacking = [n for n in range(processes) if not journal_path(directory, n).is_file()]
    if lacking:
        raise EvaluationError(f"{directory}: {_separate(lacking)}")


def assembled(directory: Path, parts: Sequence[Part], journals: Journals) -> Iterator[Entry]:
    """All entries in the order of suites, tasks, arms and items.

    Raises:
        EvaluationError: if a result is in no journal, before the first entry.
    """
    lacking = sum(len(set(part.items).difference(journals.items(part.key))) for part in parts)
    if lacking:
        total = sum(len(part.items) for part in parts)
        raise EvaluationError(
            f"{directory}: {lacking:,} of {total:,} results are in no journal there; "
            f"{_separate([])}"
        )
    return (entry for part in parts for entry in journals.entries(part.key))


def _separate(processes: Sequence[int]) -> str:
    """What is wrong where processes do not write to one directory, and what to do."""
    names = ", ".join(map(str, processes))
    writes = f"nothing is seen there of process {names}" if names else "one of them is elsewhere"
    return (
        f"all processes have to write to the same directory, and {writes}; give an output that "
        "all machines share"
    )
