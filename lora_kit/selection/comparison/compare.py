"""Comparison of runs, task by task: verdicts, paired differences, and texts of changed items."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from lora_kit.evaluation.comparisons import task_score
from lora_kit.evaluation.gain_choice import GAIN_DECIMALS, standardized
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.ledger_view import ADAPTER_ARM
from lora_kit.evaluation.stopping import adapter_end
from lora_kit.evaluation.suite import Suite
from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.recipe.identity import dotted_fields
from lora_kit.runtime.errors import EvaluationError
from lora_kit.selection.comparison.curves import read_losses
from lora_kit.selection.comparison.differences import (
    ITEMS,
    Contender,
    RunDifference,
    compare_pair,
    with_holm,
)
from lora_kit.selection.comparison.recipes import recipe_rows, setup_rows
from lora_kit.selection.comparison.result import (
    ComparedRun,
    ComparedTask,
    LeftOut,
    RunComparison,
    TaskCell,
    TextKey,
    keeps_retention,
)
from lora_kit.selection.comparison.results import BASE_ARM, RunResults, TaskPart
from lora_kit.selection.comparison.runs import NamedRun

MAX_FIELDS = 3
"""Largest number of fields that are named where definitions of a suite differ."""


@dataclass(frozen=True)
class _Judged:
    """Task with all that follows from its ledgers."""

    task: ComparedTask
    differences: list[RunDifference]
    left_out: list[LeftOut]
    items: dict[int, frozenset[str]]


def compare_results(runs: Sequence[NamedRun], results: Sequence[RunResults]) -> RunComparison:
    """Compare runs on all tasks that they share; results of one task at a time are in memory.

    Args:
        runs: the runs.
        results: results of each run.

    Raises:
        LoraKitError: if a file cannot be read.
    """
    definitions = _definitions(results)
    judged = [
        _judged(runs, results, suite, task)
        for suite in definitions
        for task in suite.in_verdict.tasks
    ]
    differences = with_holm([one for task in judged for one in task.differences])
    records = [run.directory.load_record() for run in runs]
    tasks, best = _named([one.task for one in judged]), best_run([one.task for one in judged], runs)
    halves = [
        frozenset[str]().union(*(one.items.get(n, ()) for one in judged)) for n in range(len(runs))
    ]
    found = RunComparison(
        runs=tuple(
            ComparedRun(
                run.name,
                run.directory.root,
                run.chosen,
                ITEMS.get(half, ""),
                result.adapter,
                read_losses(run.directory, record),
            )
            for run, result, record, half in zip(runs, results, records, halves, strict=True)
        ),
        tasks=tasks,
        differences=tuple(sorted(differences, key=lambda one: (one.adjusted, one.p))),
        best=best,
        left_out=(
            *_left_out_suites(runs, results, definitions),
            *(one for task in judged for one in task.left_out),
        ),
        recipes=recipe_rows([run.directory for run in runs]),
        setup=setup_rows(records, [result.adapter for result in results]),
        texts={},
    )
    return replace(found, texts=_texts(found.shown, results, definitions))


def _definitions(results: Sequence[RunResults]) -> list[Suite]:
    """Return all suites, each definition once, gain before retention."""
    every = {(s.name, s.digest): s for one in results for s in one.suites.values()}
    return sorted(every.values(), key=lambda suite: suite.role != "gain")


def _judged(
    runs: Sequence[NamedRun], results: Sequence[RunResults], suite: Suite, task: TaskSpec
) -> _Judged:
    """Read a task of all runs that have it, and compare them."""
    of = {
        number: read
        for number, one in enumerate(results)
        if suite.name in one.suites and one.suites[suite.name].digest == suite.digest
        if (read := one.read(suite, task)).parts
    }
    where, left_out, differences = f"{suite.name}/{task.name}", [], []
    cells: list[TaskCell | None] = [None] * len(runs)
    items = {}
    for number, read in of.items():
        part = (read.half_b if runs[number].chosen else None) or read.whole
        items[number] = read.halves_of(part.adapter)
        try:
            cells[number] = _cell(suite, task, part)
        except EvaluationError as error:
            left_out.append(
                LeftOut(f"{where}: verdict on {runs[number].name}", _reason(error, where))
            )
    contenders = [Contender(n, bool(runs[n].chosen), read) for n, read in of.items()]
    refused = defaultdict(list)
    for first, second in combinations(contenders, 2):
        try:
            differences.append(compare_pair(suite, task, first, second))
        except EvaluationError as error:
            names = f"{runs[first.number].name} and {runs[second.number].name}"
            refused[_reason(error, where)].append(names)
    left_out += [LeftOut(f"{where}: {'; '.join(names)}", why) for why, names in refused.items()]
    shown = ComparedTask(
        where,
        suite.name,
        suite.digest,
        suite.role,
        task.name,
        task.unit,
        task.higher_is_better,
        tuple(cells),
    )
    return _Judged(shown, differences, left_out, items)


def _cell(suite: Suite, task: TaskSpec, part: TaskPart) -> TaskCell:
    """Judge the adapter against the base, as its verdict does.

    Raises:
        EvaluationError: if no item has a score of both.
    """
    arms = {BASE_ARM: part.base, ADAPTER_ARM: part.adapter}
    end = adapter_end(arms, suite, task, part.looks)
    return TaskCell(
        task_score(end.pairs.before, task),
        task_score(end.pairs.after, task),
        end.comparison.interval,
        end.decision,
        end.why,
    )


def _reason(error: EvaluationError, where: str) -> str:
    return str(error).removeprefix(f"{where}: ").partition(". Fix:")[0]


def _named(tasks: Sequence[ComparedTask]) -> tuple[ComparedTask, ...]:
    """Add the digest of the suite to the names of tasks that several definitions have."""
    counts = Counter(task.name for task in tasks)
    return tuple(
        replace(task, name=f"{task.name} ({task.digest[:6]})") if counts[task.name] > 1 else task
        for task in tasks
    )


def _left_out_suites(
    runs: Sequence[NamedRun], results: Sequence[RunResults], suites: Sequence[Suite]
) -> Iterator[LeftOut]:
    """Yield the suites that not all runs have, or that they define otherwise."""
    for name in dict.fromkeys(suite.name for suite in suites):
        of = [one.suites.get(name) for one in results]
        without = [run.name for run, suite in zip(runs, of, strict=True) if suite is None]
        if without:
            yield LeftOut(name, f"no results of {', '.join(without)}")
        first = next(suite for suite in of if suite is not None)
        others = defaultdict(list)
        for run, suite in zip(runs, of, strict=True):
            if suite is not None and suite.digest != first.digest:
                others[_unlike(first, suite)].append(run.name)
        reference = runs[of.index(first)].name
        for fields, names in others.items():
            reason = f"not the suite that {reference} was asked (differs in {fields})"
            yield LeftOut(f"{name}: {', '.join(names)}", reason)
    for run, result in zip(runs, results, strict=True):
        for name in dict.fromkeys(result.redefined):
            reason = "two directories of the run define it otherwise; the first one counts"
            yield LeftOut(f"{name}: {run.name}", reason)
    for suite in suites:
        if beside := [task.name for task in suite.tasks if not task.in_verdict]:
            yield LeftOut(f"{suite.name}: {', '.join(beside)}", "stands beside the verdict")


def _unlike(first: Suite, second: Suite) -> str:
    """Return the fields in which two definitions of a suite differ."""
    one, other = (dict(dotted_fields(suite.model_dump(mode="json"))) for suite in (first, second))
    names = [n for n in dict.fromkeys([*one, *other]) if one.get(n) != other.get(n)]
    more = f" and {len(names) - MAX_FIELDS} more" if len(names) > MAX_FIELDS else ""
    return f"{', '.join(names[:MAX_FIELDS])}{more}"


def best_run(tasks: Sequence[ComparedTask], runs: Sequence[NamedRun]) -> int | None:
    """Return the number of the best run; `None` without a gain task that all runs have.

    A run that was chosen on other items comes first, then those that keep every retention task;
    of these, the one that gains most. Of equal gains, the earlier run.
    """
    shared = [one for one in tasks if one.role == "gain" and all(one.cells)]
    if not shared:
        return next((n for n, run in enumerate(runs) if run.chosen), None)
    gains = standardized(
        [[cell.interval for one in shared if (cell := one.cells[n])] for n in range(len(runs))]
    )

    def preference(number: int) -> tuple[bool, bool, float, int]:
        return (
            bool(runs[number].chosen),
            keeps_retention(tasks, number),
            round(gains[number].value, GAIN_DECIMALS),
            -number,
        )

    return max(range(len(runs)), key=preference)


def _texts(
    shown: Sequence[RunDifference], results: Sequence[RunResults], suites: Sequence[Suite]
) -> dict[TextKey, dict[str, Entry]]:
    """Read the texts of the changed items of the shown pairs, once a run and task."""
    items: dict[TextKey, set[str]] = defaultdict(set)
    for one in shown:
        for run in one.pair:
            key = (run, one.suite, one.digest, one.task)
            items[key].update(item for side in one.changed for item in side)
    by_digest = {(suite.name, suite.digest): suite for suite in suites}
    found = {}
    for key, wanted in items.items():
        run, name, digest, task = key
        suite = by_digest[name, digest]
        spec = next(one for one in suite.tasks if one.name == task)
        found[key] = results[run].texts(suite, spec, wanted)
    return found
