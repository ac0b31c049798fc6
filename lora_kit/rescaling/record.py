"""`rescale.json`: what was tried, what half A said of it, what was taken and why, what half B says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.verdict import TaskVerdict, Verdict
from lora_kit.rescaling.halves import Halves
from lora_kit.rescaling.pick import Candidate, Gain, Pick
from lora_kit.runtime.files import finite
from lora_kit.statistics.decisions import Decision


@dataclass(frozen=True)
class RescaleResult:
    """An adapter whose strength was turned.

    Attributes:
        candidates: all that were tried, on half A.
        proof: verdict on half B; `None` where nothing was taken.
        adapter: the adapter with its scale inside, and its digest; `None` where there is none.
        trained: digest of the adapter that was turned.
        items: of each task, how many there are in half A and in half B.
    """

    candidates: tuple[Candidate, ...]
    pick: Pick
    proof: Verdict | None
    adapter: tuple[Path, str] | None
    trained: str
    items: dict[str, tuple[int, int]]
    record: Path
    plot: Path
    half_a: Path
    half_b: Path

    @property
    def decision(self) -> Decision:
        """Of half B; FAIL where no scale is to be taken."""
        return self.proof.decision if self.proof else "FAIL"

    @property
    def chosen(self) -> Candidate | None:
        """What was taken."""
        return None if self.pick.chosen is None else self.candidates[self.pick.chosen]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; infinite limits are null."""
        tried = zip(self.candidates, self.pick.gains, strict=True)
        return {
            "decision": self.decision,
            "scale": _parts(self.chosen) if self.chosen else None,
            "why": self.pick.why,
            "adapter": self.trained,
            "adapter_rescaled": self.adapter[1] if self.adapter else None,
            "items": {task: {"a": a, "b": b} for task, (a, b) in self.items.items()},
            "half_a": [_tried(candidate, gain) for candidate, gain in tried],
            "half_b": {"decision": self.proof.decision, "tasks": _rows(self.proof)}
            if self.proof
            else None,
        }


def sizes(halves: Halves) -> dict[str, tuple[int, int]]:
    """Items of each task in half A and in half B."""
    both = zip(halves.a, halves.b, strict=True)
    return {a.name: (len(a.task.items), len(b.task.items)) for a, b in both}


def _parts(candidate: Candidate) -> dict[str, Any]:
    early, middle, late = candidate.strength.parts
    return {
        "name": candidate.strength.name,
        "early": early,
        "middle": middle,
        "late": late,
    }


def _tried(candidate: Candidate, gain: Gain) -> dict[str, Any]:
    return {
        **_parts(candidate),
        "keeps_retention": not candidate.lost,
        "gain": {
            "half_intervals": finite(gain.value),
            "low": finite(gain.low),
            "high": finite(gain.high),
        },
        "tasks": _rows(candidate.verdict),
    }


def _rows(verdict: Verdict) -> list[dict[str, Any]]:
    return [
        {"suite": suite.suite, "role": suite.role, **_row(task)}
        for suite in verdict.suites
        for task in suite.tasks
    ]


def _row(task: TaskVerdict) -> dict[str, Any]:
    return {
        "task": task.task,
        "unit": task.unit,
        "margin": task.margin,
        "base": task.base,
        "adapter": task.adapter,
        "difference": task.interval.delta,
        "low": finite(task.interval.low),
        "high": finite(task.interval.high),
        "confidence": task.interval.confidence,
        "items": task.interval.items,
        "clusters": task.interval.clusters,
        "decision": task.decision,
        "reason": task.reason,
        "items_needed": task.items_needed,
    }
