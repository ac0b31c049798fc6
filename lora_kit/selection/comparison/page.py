"""Page of a comparison: self-contained, without scripts, every name and output escaped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.reporting.escaping import template_environment
from lora_kit.evaluation.reporting.notation import (
    FormattedComparison,
    Notation,
    format_p_value,
    format_percent,
)
from lora_kit.evaluation.reporting.report import TEMPLATES, InlineAsset
from lora_kit.evaluation.scores import ITEM_UNITS
from lora_kit.runtime.files import write_text
from lora_kit.selection.comparison.curves import plot_curves
from lora_kit.selection.comparison.differences import RunDifference
from lora_kit.selection.comparison.headline import chosen_sentences, formatted, headline
from lora_kit.selection.comparison.result import MAX_RUNS, ComparedTask, RunComparison

OWN_TEMPLATES = Path(__file__).parent
MAX_ROWS = 30
"""Largest number of differences that are not folded away."""
MAX_OPEN_PAIRS = 3
"""Largest number of pairs whose changed items are not folded away."""


@dataclass(frozen=True)
class DifferenceRow:
    """Difference with its formatted values."""

    difference: RunDifference
    task: ComparedTask
    values: FormattedComparison


@dataclass(frozen=True)
class CellView:
    """Cell of the table of verdicts: decision and formatted values; `None` without results."""

    decision: str
    reason: str
    values: FormattedComparison


@dataclass(frozen=True)
class ChangedItem:
    """Item on which two runs have different scores: the entry of each."""

    first: Entry
    second: Entry
    scores: tuple[str, str]


@dataclass(frozen=True)
class ChangedTask:
    """Changed items of a pair on a task.

    Attributes:
        row: the difference.
        first: items on which the first run is better.
        second: items on which the second run is better.
        has_outputs: true if a run has outputs.
    """

    row: DifferenceRow
    first: tuple[ChangedItem, ...]
    second: tuple[ChangedItem, ...]
    has_outputs: bool


@dataclass(frozen=True)
class ChangedPair:
    """Changed items of a pair, by task."""

    first: int
    second: int
    tasks: tuple[ChangedTask, ...]

    @property
    def count(self) -> int:
        """Number of all changed items."""
        of = (one.row.difference for one in self.tasks)
        return sum(one.first_only + one.second_only for one in of)


def write_comparison(path: Path, found: RunComparison) -> None:
    """Write the page of a comparison."""
    rows = [DifferenceRow(one, found.task_of(one), formatted(one)) for one in found.shown]
    drawn = _drawn(found)
    values = {
        "found": found,
        "decisions": [found.decision(number) for number in range(len(found.runs))],
        "sentence": headline(found),
        "chosen": chosen_sentences(found),
        "cells": [
            [_cell(task, number) for number in range(len(found.runs))] for task in found.tasks
        ],
        "confidences": sorted({format_percent(one.interval.confidence) for one in found.shown}),
        "rows": rows,
        "max_rows": MAX_ROWS,
        "pairs": list(_changed_pairs(found, rows)),
        "open_pairs": MAX_OPEN_PAIRS,
        "plots": plot_curves({number: found.runs[number].losses for number in drawn}),
        "drawn": drawn,
        "style": InlineAsset.read(TEMPLATES / "page" / "style.css"),
        "own_style": InlineAsset.read(OWN_TEMPLATES / "compare.css"),
    }
    write_text(path, _environment().get_template("compare.html.j2").render(values))


@cache
def _environment() -> Environment:
    environment = template_environment(OWN_TEMPLATES, None)
    folders = [FileSystemLoader(folder) for folder in (OWN_TEMPLATES, TEMPLATES)]
    environment.loader = ChoiceLoader(folders)
    environment.filters["p_value"] = format_p_value
    return environment


def _drawn(found: RunComparison) -> list[int]:
    """Return the numbers of the runs whose curves are drawn: the first ones, and the best one."""
    numbers = [
        n for n, run in enumerate(found.runs) if run.losses.training or run.losses.validation
    ]
    if found.best in numbers[MAX_RUNS:]:
        return [*numbers[: MAX_RUNS - 1], found.best]
    return numbers[:MAX_RUNS]


def _cell(task: ComparedTask, run: int) -> CellView | None:
    cell = task.cells[run]
    if cell is None:
        return None
    values = FormattedComparison.of(task.unit, cell.base, cell.adapter, cell.interval)
    return CellView(cell.decision, cell.reason, values)


def _changed_pairs(found: RunComparison, rows: list[DifferenceRow]) -> Iterator[ChangedPair]:
    """Yield the changed items of the shown pairs, pairs and tasks in the order of the page."""
    place = {task: number for number, task in enumerate(found.tasks)}
    for pair in sorted({row.difference.pair for row in rows}):
        own = [row for row in rows if row.difference.pair == pair]
        own.sort(key=lambda row: place[row.task])
        yield ChangedPair(*pair, tuple(_changed_task(found, row) for row in own))


def _changed_task(found: RunComparison, row: DifferenceRow) -> ChangedTask:
    one = row.difference
    before, after = (
        found.texts.get((run, one.suite, one.digest, one.task), {}) for run in one.pair
    )
    # Macro-F1 is defined for all items together only.
    unit = ITEM_UNITS.get(one.unit, one.unit)
    notation = Notation.fit(unit, one.scores, one.interval)
    first, second = (
        tuple(
            ChangedItem(
                before[item],
                after[item],
                (
                    notation.plain(before[item].score or 0.0),
                    notation.plain(after[item].score or 0.0),
                ),
            )
            for item in side
        )
        for side in one.changed
    )
    every = (*first, *second)
    has_outputs = any(item.first.output or item.second.output for item in every)
    return ChangedTask(row, first, second, has_outputs)
