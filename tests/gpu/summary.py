"""Outcome of each step, the figures that matter, and the goals, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.runner import OK, Record, write_json

SUMMARY, TABLE = "summary.json", "summary.txt"
# Tokens per second of LoRA on bfloat16 weights of the 8B shape, packs of 4,096, on an H200.
GOAL_BF16 = 12_000.0
# Of that, what nf4 weights reach.
GOAL_NF4 = 0.8


@dataclass(frozen=True)
class Goal:
    """A goal and what was measured of it.

    Attributes:
        name: goal.
        wanted: smallest value.
        found: measured value; `None` if it was not measured.
    """

    name: str
    wanted: float
    found: float | None

    @property
    def outcome(self) -> str:
        """`met`, `missed` or `not measured`."""
        if self.found is None:
            return "not measured"
        return "met" if self.found >= self.wanted else "missed"


def write_summary(output: Path, records: Sequence[Record], shape: str) -> None:
    """Write `summary.json` and `summary.txt`."""
    goals = find_goals(records) if shape == "8b" else []
    document = {
        "shape": shape,
        "outcomes": {f"{one.step}: {one.case}": one.outcome for one in records},
        "goals": [vars(one) | {"outcome": one.outcome} for one in goals],
        "ceilings": {one.case: one.figures for one in records if one.step == "ceilings"},
        "speed": _speeds(records),
        "memory": _memory(records),
        "support": _support(records),
    }
    write_json(output / SUMMARY, document)
    (output / TABLE).write_text(table(records, goals) + "\n")


def find_goals(records: Sequence[Record]) -> list[Goal]:
    """Return the goals of speed with what was measured."""
    rates = {
        one.case: float(one.figures["tokens_per_second"])
        for one in records
        if one.step in ("speed", "late") and "tokens_per_second" in one.figures
    }
    bf16 = max((rate for name, rate in rates.items() if name.startswith("bf16")), default=None)
    nf4 = max((rate for name, rate in rates.items() if name.startswith("nf4")), default=None)
    trl = max((rate for name, rate in rates.items() if name.startswith("trl")), default=None)
    return [
        Goal("LoRA on bf16, token/s", GOAL_BF16, bf16),
        Goal("nf4 over bf16", GOAL_NF4, nf4 / bf16 if nf4 and bf16 else None),
        Goal("LoRA on bf16 over TRL", 1.0, bf16 / trl if bf16 and trl else None),
    ]


def _speeds(records: Sequence[Record]) -> dict[str, Any]:
    """Return the rows of RESULTS.md: token/s and bytes by variant."""
    names = ("tokens_per_second", "allocated", "reserved", "attention")
    return {
        one.case: {name: one.figures.get(name) for name in names}
        for one in records
        if "tokens_per_second" in one.figures and one.step in ("speed", "late")
    }


def _memory(records: Sequence[Record]) -> dict[str, Any]:
    """Return the bytes that were planned and allocated, and their ratio, by variant."""
    found = {}
    planned = next((r.figures for r in records if (r.step, r.case) == ("speed", "plan")), {})
    for one in records:
        if one.step == "speed" and one.case in planned:
            found[f"speed: {one.case}"] = _pair(planned[one.case]["total"], one.figures)
        elif one.step == "small training" and "planned" in one.figures:
            found[f"small: {one.case}"] = _pair(one.figures["planned"], one.figures)
    return found


def _pair(planned: int, figures: dict[str, Any]) -> dict[str, Any]:
    allocated = figures.get("allocated")
    return {
        "planned": planned,
        "allocated": allocated,
        "planned_over_allocated": planned / allocated if allocated else None,
    }


def _support(records: Sequence[Record]) -> dict[str, bool]:
    """Return what ran, for the support matrix: weights of small trainings, and all stages."""
    steps = ("small training", "sharded", "answering", "out of memory")
    return {f"{one.step}: {one.case}": one.outcome == OK for one in records if one.step in steps}


def table(records: Sequence[Record], goals: Sequence[Goal]) -> str:
    """Return a line for each case and for each goal."""
    lines = [f"{'step':16}{'case':26}{'outcome':11}{'s':>7}{'GB':>8}  figures"]
    for one in records:
        gigabytes = f"{one.peak_memory / 1e9:8.2f}" if one.peak_memory is not None else " " * 8
        told = one.reason or _told(one.figures)
        lines.append(
            f"{one.step:16}{one.case:26}{one.outcome:11}{one.seconds:7.1f}{gigabytes}  {told[:90]}"
        )
    for goal in goals:
        found = "-" if goal.found is None else f"{goal.found:.2f}"
        lines.append(f"goal: {goal.name}: at least {goal.wanted:g}, got {found}: {goal.outcome}")
    return "\n".join(lines)


def _told(figures: dict[str, Any]) -> str:
    """Return the first plain figures in a line."""
    parts = []
    for name, value in figures.items():
        if isinstance(value, bool | str):
            parts.append(f"{name} {value}")
        elif isinstance(value, int | float):
            parts.append(f"{name} {value:.4g}")
    return ", ".join(parts)
