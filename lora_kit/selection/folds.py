"""Verdict on a recipe by cross-validation: how it does on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lora_kit.evaluation.reporting.escaping import escape_terminal
from lora_kit.evaluation.reporting.show import STYLE
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.runtime.files import finite
from lora_kit.statistics.decisions import Decision, Interval
from lora_kit.statistics.folds import compare_folds

FOLDS = "folds.json"
"""Record of a cross-validation, in the directory of its runs."""
# Two-sided level of the decision, as of a suite's by default.
ALPHA = 0.05


@dataclass(frozen=True)
class FoldScores:
    """Scores of an arm, and how much better the adapter is.

    Attributes:
        arm: name of the arm.
        scores: score in each fold.
        interval: interval of the adapter's mean difference from it, over the folds.
        p: two-sided p-value of no difference.
    """

    arm: str
    scores: tuple[float, ...]
    interval: Interval
    p: float


@dataclass(frozen=True)
class FoldsVerdict:
    """Verdict on a recipe over the folds.

    Attributes:
        unit: unit of the scores.
        adapter: the adapter's score in each fold.
        against: the other arms, the base first.
        names: name of each fold: a number, or a source.
        rows: held-out rows of each fold.
        directory: directory of all folds' runs.
    """

    unit: str
    adapter: tuple[float, ...]
    against: tuple[FoldScores, ...]
    names: tuple[str, ...]
    rows: tuple[int, ...]
    directory: Path

    @property
    def decision(self) -> Decision:
        """PASS if the adapter is better than the base, by the interval over the folds."""
        interval = self.against[0].interval
        if interval.low > 0:
            return "PASS"
        return "FAIL" if interval.high < 0 else "INCONCLUSIVE"

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        value: dict[str, Any] = finite(
            {"decision": self.decision, **asdict(self), "directory": str(self.directory)}
        )
        return value


def judge_folds(
    tasks: Sequence[TaskVerdict], names: Sequence[str], directory: Path
) -> FoldsVerdict:
    """Judge a recipe by the verdicts of its folds.

    Args:
        tasks: verdict of each fold's only task, with the same baselines.
        names: name of each fold.
        directory: directory of all folds' runs.
    """
    rows = tuple(one.interval.items for one in tasks)
    sign = 1 if tasks[0].higher_is_better else -1
    adapter = tuple(one.adapter for one in tasks)
    scores = {"base": tuple(one.base for one in tasks)}
    for number, baseline in enumerate(tasks[0].baselines):
        scores[baseline.arm] = tuple(one.baselines[number].mean for one in tasks)
    against = []
    for arm, own in scores.items():
        differences = [sign * (a - b) for a, b in zip(adapter, own, strict=True)]
        against.append(FoldScores(arm, own, *compare_folds(differences, rows, ALPHA)))
    return FoldsVerdict(tasks[0].unit, adapter, tuple(against), tuple(names), rows, directory)


def show_folds_verdict(verdict: FoldsVerdict, console: Console) -> None:
    """Print the scores of all arms over the folds."""
    count = len(verdict.rows)
    title = f"{sum(verdict.rows):,} rows, each held out in one of {count} folds"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    columns = ("arm", *verdict.names, f"mean {verdict.unit}", "adapter over it", "interval", "p")
    for name in columns:
        table.add_column(escape_terminal(name), justify="left" if name == "arm" else "right")
    table.add_row("adapter", *_each(verdict.adapter), f"{np.mean(verdict.adapter):.3f}")
    for one in verdict.against:
        interval = one.interval
        table.add_row(
            escape_terminal(one.arm),
            *_each(one.scores),
            f"{np.mean(one.scores):.3f}",
            f"{interval.delta:+.3f}",
            f"{interval.low:+.3f} to {interval.high:+.3f}",
            f"{one.p:.2g}",
        )
    console.print(table)
    console.print(
        "Intervals hold for the recipe on other rows: over folds, for adapters that share training "
        "rows (Nadeau and Bengio 2003).",
        highlight=False,
    )
    console.print(f"Recipe: [{STYLE[verdict.decision]}]{verdict.decision}[/]")


def _each(scores: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in scores]
