"""Result of a rescaling, and its record `rescale.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.evaluation.verdict import TaskVerdict, Verdict
from lora_kit.rescaling.choice import Candidate, Gain, ScaleChoice
from lora_kit.rescaling.halves import Halves
from lora_kit.runtime.files import finite
from lora_kit.statistics.decisions import Decision


@dataclass(frozen=True)
class RescaleResult:
    """Result of a rescaling.

    Attributes:
        candidates: all scales that were tried, with their verdicts on half A.
        choice: chosen scale, and the reason.
        proof: verdict on half B; `None` if no scale was chosen.
        adapter: directory and digest of the rescaled adapter; `None` if no scale was chosen.
        trained: digest of the adapter as trained.
        items: number of items in half A and in half B, by task.
        record: path of `rescale.json`.
        plot: path of `rescale.png`.
        half_a: directory of the evaluation on half A.
        half_b: directory of the evaluation on half B.
    """

    candidates: tuple[Candidate, ...]
    choice: ScaleChoice
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
        """Decision on half B; FAIL if no scale was chosen."""
        return self.proof.decision if self.proof else "FAIL"

    @property
    def chosen(self) -> Candidate | None:
        """Chosen candidate; `None` if no scale was chosen."""
        return None if self.choice.chosen is None else self.candidates[self.choice.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON; infinite limits are null."""
        tried = zip(self.candidates, self.choice.gains, strict=True)
        return {
            "decision": self.decision,
            "scale": _scale(self.chosen) if self.chosen else None,
            "reason": self.choice.reason,
            "adapter": self.trained,
            "adapter_rescaled": self.adapter[1] if self.adapter else None,
            "items": {task: {"a": a, "b": b} for task, (a, b) in self.items.items()},
            "half_a": [_candidate(candidate, gain) for candidate, gain in tried],
            "half_b": {"decision": self.proof.decision, "tasks": _tasks(self.proof)}
            if self.proof
            else None,
        }


def half_sizes(halves: Halves) -> dict[str, tuple[int, int]]:
    """Return the number of items in half A and in half B, by task."""
    both = zip(halves.a, halves.b, strict=True)
    return {a.name: (len(a.task.items), len(b.task.items)) for a, b in both}


def _scale(candidate: Candidate) -> dict[str, Any]:
    early, middle, late = candidate.scale.parts
    return {"name": candidate.scale.name, "early": early, "middle": middle, "late": late}


def _candidate(candidate: Candidate, gain: Gain) -> dict[str, Any]:
    return {
        **_scale(candidate),
        "keeps_retention": not candidate.failed_retention,
        "gain": {
            "half_intervals": finite(gain.value),
            "low": finite(gain.low),
            "high": finite(gain.high),
        },
        "tasks": _tasks(candidate.verdict),
    }


def _tasks(verdict: Verdict) -> list[dict[str, Any]]:
    return [
        {"suite": suite.suite, "role": suite.role, **_task(task)} for suite, task in verdict.tasks
    ]


def _task(task: TaskVerdict) -> dict[str, Any]:
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
