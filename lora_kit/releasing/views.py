"""The verdict's tasks as a card shows them: numbers with their units, signs and enough places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_kit.evaluation.reporting.notation import Notation, Numbers, p_value
from lora_kit.statistics.decisions import Interval


@dataclass(frozen=True)
class TaskView:
    """One task of a card.

    Attributes:
        task: as the verdict has it.
        numbers: of the adapter against the base.
        merged: of the merged model against the base.
        merged_score: mean of the merged model; `None` where it has scores on other items.
        see: the half width of the interval; a smaller difference cannot be told from none.
        margin: of retention.
        drift: KL from the base in nats a token, with its interval; empty where not measured.
    """

    suite: str
    role: str
    task: Mapping[str, Any]
    numbers: Numbers
    merged: Numbers
    merged_score: float | None
    see: str
    margin: str
    drift: str

    @property
    def name(self) -> str:
        """As it is called in lists."""
        return f"{self.suite}/{self.task['task']}"

    @property
    def lost(self) -> str:
        """Whether something was lost, in words; empty where the mean is not worse."""
        interval = self.task["interval"]
        if interval["delta"] >= 0:
            return ""
        if self.task["alarm"]:
            return "lost for sure"
        is_sure = interval["high"] is not None and interval["high"] < 0
        return "lost" if is_sure else "lost, not significantly"


def task_views(verdict: Mapping[str, Any]) -> list[TaskView]:
    """Every task of a verdict, in its order."""
    return list(_views(verdict))


def _views(verdict: Mapping[str, Any]) -> Iterator[TaskView]:
    for suite in verdict["suites"]:
        for task in suite["tasks"]:
            base, unit = task["base"], task["unit"]
            measured, merged = interval(task["interval"]), interval(task["merged_interval"])
            of_merges = {one["arm"]: one["mean"] for one in task["merges"]}
            score = of_merges[verdict["ships"]] if merged.items == measured.items else None
            line = -(task["margin"] or 0.0)
            notation = Notation.fit(unit, (base, task["adapter"]), measured, line)
            in_unit = f" {'pp' if notation.percent else unit}"
            drift = task["drift"]
            yield TaskView(
                suite["suite"],
                suite["role"],
                task,
                _numbers(notation, unit, (base, task["adapter"]), measured),
                _numbers(notation, unit, (base, math.nan if score is None else score), merged),
                score,
                notation.signed((measured.high - measured.low) / 2).removeprefix("+") + in_unit,
                notation.signed(task["margin"]).removeprefix("+") + in_unit
                if task["margin"] is not None
                else "",
                _drift(interval(drift["interval"])) if drift else "",
            )


def _numbers(
    notation: Notation, unit: str, scores: tuple[float, float], found: Interval
) -> Numbers:
    return Numbers(
        notation.plain(scores[0]),
        notation.plain(scores[1]),
        notation.signed(found.delta),
        notation.signed(found.low),
        notation.signed(found.high),
        "pp" if notation.percent else unit,
    )


def _drift(found: Interval) -> str:
    written = Numbers.of("nats", found.delta, found.delta, found)
    return f"{written.delta} ({written.low} to {written.high})".replace("+", "")


def interval(value: Mapping[str, Any]) -> Interval:
    """An interval of a verdict's JSON, in which infinite limits are null."""
    low, high = value["low"], value["high"]
    return Interval(
        value["delta"],
        -math.inf if low is None else low,
        math.inf if high is None else high,
        value["confidence"],
        value["items"],
        value["clusters"],
    )


def lost_slices(verdict: Mapping[str, Any]) -> list[str]:
    """Slices on which something was lost for sure, in words."""
    return [
        f"{suite['suite']}/{task['task']}, {one['field']} {one['value']}: "
        f"{one['interval']['delta']:+.4g} on {one['interval']['items']} items, "
        f"p {p_value(one['adjusted'])} after Holm"
        for suite in verdict["suites"]
        for task in suite["tasks"]
        for one in task["slices"]
        if one["alarm"]
    ]
