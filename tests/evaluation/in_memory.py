"""Judging and reporting of entries in memory, which the product reads from a ledger."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_kit.evaluation import judge as judge_module
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.ledger_view import LedgerView
from lora_kit.evaluation.reporting import flips, report
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.verdict import Verdict

Results = LedgerView | Sequence[Entry]


class InMemoryLedger:
    """View of entries that are in memory."""

    def __init__(self, entries: Sequence[Entry]):
        by_task: dict[tuple[str, str], dict[str, dict[str, Entry]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for entry in entries:
            by_task[entry.suite, entry.task][entry.arm][entry.item] = entry
        self._by_task = by_task

    def scores(self, suite: str, task: str) -> dict[str, dict[str, float | None]]:
        """See `LedgerView`."""
        arms = self._by_task[suite, task]
        return {
            arm: {item: entry.score for item, entry in entries.items()}
            for arm, entries in arms.items()
        }

    def has_outputs(self, suite: str, task: str, arms: Collection[str]) -> bool:
        """See `LedgerView`."""
        by_arm = self._by_task[suite, task]
        return any(entry.output for arm in arms for entry in by_arm.get(arm, {}).values())

    def arms(
        self,
        suite: str,
        task: str,
        texts: Collection[str] = (),
    ) -> Mapping[str, Mapping[str, Entry]]:
        """See `LedgerView`."""
        return self._by_task[suite, task]

    def entries(
        self, suite: str, task: str, arms: Collection[str], items: Collection[str]
    ) -> Iterator[Entry]:
        """See `LedgerView`."""
        requested = frozenset(items)
        for arm in arms:
            for item, entry in self._by_task[suite, task].get(arm, {}).items():
                if item in requested:
                    yield entry


def as_ledger_view(results: Results) -> LedgerView:
    """Return results as a view; a sequence of entries is wrapped."""
    return InMemoryLedger(results) if isinstance(results, Sequence) else results


def judge(results: Results, suites: Sequence[Suite]) -> Verdict:
    return judge_module.judge(as_ledger_view(results), suites)


def find_flips(results: Results, verdict: Verdict) -> tuple[flips.TaskFlips, ...]:
    return flips.find_flips(as_ledger_view(results), verdict)


def write_flips(path: Path, results: Results, verdict: Verdict) -> int:
    """Write the flips and return their number."""
    flips.write_flips(path, as_ledger_view(results), verdict)
    with path.open() as lines:
        return sum(1 for _ in lines)


def write_report(
    directory: Path, verdict: Verdict, results: Results, facts: report.ReportFacts
) -> None:
    report.write_report(directory, verdict, as_ledger_view(results), facts)


RETENTION = Suite.model_validate(
    {
        "name": "keep",
        "role": "retention",
        "tasks": [
            {"name": "quiz", "kind": "multiple_choice", "source": "x", "margin": 0.05},
            {"name": "prose", "kind": "loss", "source": "x", "margin": 0.1},
        ],
    }
)


def entries(task: str, arm: str, scores: list[float | None]) -> list[Entry]:
    return [
        Entry(arm, "keep", task, f"i{n}", f"c{n}", score, "out", "in", "ref", 3, 0.1)
        for n, score in enumerate(scores)
    ]


def ledger(quiz: list[float | None], prose: list[float | None]) -> list[Entry]:
    return [
        *entries("quiz", "base", [1.0] * len(quiz)),
        *entries("quiz", "adapter", quiz),
        *entries("prose", "base", [3.0] * len(prose)),
        *entries("prose", "adapter", prose),
    ]


def arm(
    name: str, scores: list[float], suite: str = "keep", task: str = "quiz", **fields: Any
) -> list[Entry]:
    return [
        Entry(name, suite, task, f"i{n}", f"c{n}", score, "out", "in", "ref", 3, 0.1)
        if not fields
        else Entry(
            name,
            suite,
            task,
            f"i{n}",
            f"c{n}",
            score,
            "out",
            "in",
            "ref",
            3,
            0.1,
            **{key: value(n) for key, value in fields.items()},
        )
        for n, score in enumerate(scores)
    ]


def one_task(role: str, **fields: Any) -> Suite:
    task = {"name": "quiz", "kind": "multiple_choice", "source": "x", **fields}
    if role == "retention":
        task = {"margin": 0.1, **task}
    return Suite.model_validate({"name": "keep", "role": role, "tasks": [task]})
