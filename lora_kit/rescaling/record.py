"""Result of a rescaling, and its record `rescale.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lora_kit.evaluation.gain_choice import Gain
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict import Verdict
from lora_kit.rescaling.choice import Candidate, ScaleChoice
from lora_kit.rescaling.intruders import ReducedAdapter
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.files import finite
from lora_kit.statistics.decisions import Decision


@dataclass(frozen=True)
class RescaleResult:
    """Result of a rescaling.

    Attributes:
        candidates: all scales that were tried, with their verdicts on half A.
        choice: chosen scale, and the reason.
        proof: verdict on half B; `None` if no scale was chosen.
        trained: digest of the adapter as trained.
        rescaled: digest of the rescaled adapter; `None` if no scale was chosen.
        items: number of items in half A and in half B, by task.
        output: directory of the results.
        reduced: intruder dimensions that were found; `None` if they were not searched for.
    """

    candidates: tuple[Candidate, ...]
    choice: ScaleChoice
    proof: Verdict | None
    trained: str
    rescaled: str | None
    items: dict[str, tuple[int, int]]
    output: RunDirectory
    reduced: ReducedAdapter | None = None

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
        result = {
            "decision": self.decision,
            "scale": _scale(self.chosen) if self.chosen else None,
            "reason": self.choice.reason,
            "adapter": self.trained,
            "adapter_rescaled": self.rescaled,
            "intruders": self.reduced.to_dict() if self.reduced else None,
            "items": {task: {"a": a, "b": b} for task, (a, b) in self.items.items()},
            "half_a": [_candidate(candidate, gain) for candidate, gain in tried],
            "half_b": {"decision": self.proof.decision, "tasks": _tasks(self.proof)}
            if self.proof
            else None,
        }
        value: dict[str, Any] = finite(result)
        return value


def _scale(candidate: Candidate) -> dict[str, Any]:
    return {"name": candidate.scale.name, **asdict(candidate.scale)}


def _candidate(candidate: Candidate, gain: Gain) -> dict[str, Any]:
    return {
        **_scale(candidate),
        "keeps_retention": not candidate.failed_retention,
        "gain": {"half_intervals": gain.value, "low": gain.low, "high": gain.high},
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
        "low": task.interval.low,
        "high": task.interval.high,
        "confidence": task.interval.confidence,
        "items": task.interval.items,
        "clusters": task.interval.clusters,
        "decision": task.decision,
        "reason": task.reason,
        "items_needed": task.items_needed,
    }
