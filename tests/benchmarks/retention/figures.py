"""Figures of the plane: gain and forgetting of a way, and their shares of plain LoRA's.

Intervals are over seeds and clusters of items together, by the method of `statistics.seeds`: each
part has the t quantile of its own degrees of freedom, and the half-widths add up in squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lora_kit.evaluation.ledger import Entry
from lora_kit.statistics.clusters import clustered_sample
from tests.benchmarks.retention.ways import PLAIN

if TYPE_CHECKING:
    from tests.benchmarks.retention.cells import Measured

Matrix = NDArray[np.float64]
LEVEL = 0.95
GAIN, KEPT = "gain", "core-retention"
LOSS, OBEYED = "loss", "obeyed"
# A recommended way keeps this share of plain LoRA's gain, and has this share of its forgetting.
GOAL_GAIN, GOAL_FORGETTING = 0.95, 0.25


@dataclass(frozen=True)
class Change:
    """By how much a score of several tasks changed, positive where it grew.

    Attributes:
        values: for each task (seeds, items), the same items in the same order for all ways.
        clusters: for each task (items,), names of clusters.
    """

    values: Mapping[str, Matrix]
    clusters: Mapping[str, Sequence[str]]

    @property
    def mean(self) -> float:
        """Mean over tasks of the means over seeds and items."""
        return math.fsum(float(one.mean()) for one in self.values.values()) / len(self.values)

    def half_width(self, level: float = LEVEL) -> float:
        """Return half the width of the interval of the mean."""
        count = len(self.values)
        parts = []
        for task, values in self.values.items():
            sample = clustered_sample(values.mean(axis=0), self.clusters[task])
            parts.append((sample.error / count, sample.clusters - 1))
        means = np.mean([values.mean(axis=1) for values in self.values.values()], axis=0)
        parts.append((float(means.std(ddof=1)) / math.sqrt(len(means)), len(means) - 1))
        return math.sqrt(sum((e * stats.t.isf((1 - level) / 2, n)) ** 2 for e, n in parts))

    def interval(self, level: float = LEVEL) -> list[float]:
        """Return [mean, low, high]."""
        width = self.half_width(level)
        return [round(value, 4) for value in (self.mean, self.mean - width, self.mean + width)]

    def minus(self, other: Change, factor: float) -> Change:
        """Return this one minus a multiple of another, seed by seed and item by item."""
        values = {name: one - factor * other.values[name] for name, one in self.values.items()}
        return Change(values, self.clusters)


def share(one: Change, of: Change, level: float = LEVEL) -> list[float] | None:
    """Return the ratio of two changes with its interval, [ratio, low, high].

    The shares r for which `one - r * of` may be 0 (Fieller 1954, JRSS B 16:175). `None` if `of` is
    not shown to be above 0: then nothing can be said of a share.
    """
    # The squared half-width of `one - r * of` is a quadratic function of r.
    at = {r: one.minus(of, r).half_width(level) ** 2 for r in (-1.0, 0.0, 1.0)}
    square, slope = (at[1.0] + at[-1.0]) / 2 - at[0.0], (at[1.0] - at[-1.0]) / 2
    top, bottom = one.mean, of.mean
    a, b, c = bottom**2 - square, -2 * top * bottom - slope, top**2 - at[0.0]
    root = b * b - 4 * a * c
    if a <= 0 or bottom <= 0 or root < 0:
        return None
    low, high = (-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)
    return [round(value, 3) for value in (top / bottom, low, high)]


def changes(seeds: Sequence[Iterable[Entry]], suite: str, score: str = LOSS) -> Change:
    """Return by how much a score of a suite's tasks grew from the base to the adapter.

    Args:
        seeds: for each seed the entries of base and adapter.
        suite: name of the suite.
        score: which tasks, and which of their scores: `loss` or `accuracy` of those that have one,
            `obeyed` of the others.
    """
    values: dict[str, list[list[float]]] = {}
    clusters: dict[str, list[str]] = {}
    for entries in seeds:
        found: dict[str, dict[str, dict[str, float]]] = {}
        of_item: dict[tuple[str, str], str] = {}
        for entry in entries:
            value = _score(entry, score)
            if entry.suite == suite and entry.arm in ("base", "adapter") and value is not None:
                found.setdefault(entry.task, {}).setdefault(entry.item, {})[entry.arm] = value
                of_item[entry.task, entry.item] = entry.cluster or entry.item
        for task, items in found.items():
            names = sorted(items)
            clusters[task] = [of_item[task, name] for name in names]
            grown = [items[name]["adapter"] - items[name]["base"] for name in names]
            values.setdefault(task, []).append(grown)
    return Change({task: np.array(rows) for task, rows in values.items()}, clusters)


def _score(entry: Entry, score: str) -> float | None:
    if score == "accuracy":
        return entry.measures.get("accuracy")
    is_loss = "loss" in entry.measures or "nats" in entry.measures
    return entry.score if is_loss is (score == LOSS) else None


def turned(one: Change) -> Change:
    """Return the change with the opposite sign."""
    return Change({task: -values for task, values in one.values.items()}, one.clusters)


def only(one: Change, task: str) -> Change:
    """Return the change of one task."""
    return Change({task: one.values[task]}, {task: one.clusters[task]})


def figures_of(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Return the figures of each way; shares if plain LoRA is among them."""
    plain = next((one for one in measured if one.way == PLAIN), None)
    figures = {}
    for one in measured:
        gain, forgetting = turned(changes(one.entries, GAIN)), changes(one.entries, KEPT, LOSS)
        figures[one.way] = {
            "rate": one.rate,
            "gain": gain.interval(),
            "forgetting": forgetting.interval(),
            "by_task": {name: only(forgetting, name).interval() for name in forgetting.values},
            "accuracy": changes(one.entries, KEPT, "accuracy").interval(),
            "instructions": changes(one.entries, KEPT, OBEYED).interval(),
            "drift": round(float(np.mean([mean_drift(e, GAIN) for e in one.entries])), 4),
            "seconds": round(one.seconds, 1),
        }
        if plain is not None:
            plain_gain = turned(changes(plain.entries, GAIN))
            plain_forgetting = changes(plain.entries, KEPT, LOSS)
            figures[one.way] |= {
                "gain_share": share(gain, plain_gain),
                "forgetting_share": share(forgetting, plain_forgetting),
                "forgetting_less": turned(forgetting.minus(plain_forgetting, 1)).interval(),
                "reaches_goal": _reaches_goal(gain, plain_gain, forgetting, plain_forgetting),
            }
    return figures


def _reaches_goal(gain: Change, of_gain: Change, lost: Change, of_lost: Change) -> bool:
    """Return true if 95% of the gain and 75% less forgetting are both shown."""
    return (
        of_lost.interval()[1] > 0
        and gain.minus(of_gain, GOAL_GAIN).interval()[1] > 0
        and lost.minus(of_lost, GOAL_FORGETTING).interval()[2] < 0
    )


def drift_and_forgetting(places: Mapping[str, Sequence[Measured]]) -> dict[str, list[float]]:
    """Return Spearman's rank correlation of drift and forgetting over adapters, with its p-value.

    An adapter is one way and seed; drift is measured on the prompts of the held-out items.
    """
    found = {}
    for name, measured in places.items():
        drifts = [mean_drift(entries, GAIN) for one in measured for entries in one.entries]
        lost = [changes([e], KEPT, LOSS).mean for one in measured for e in one.entries]
        if len(drifts) > 3:
            correlation = stats.spearmanr(drifts, lost)
            found[name] = [round(float(correlation.statistic), 2), float(correlation.pvalue)]
    return found


def mean_drift(entries: Iterable[Entry], suite: str) -> float:
    """Return the mean divergence from the base at the ends of a suite's prompts, in nats."""
    values = [
        entry.score
        for entry in entries
        if entry.arm == "drift" and entry.suite == suite and entry.score is not None
    ]
    return float(np.mean(values))
