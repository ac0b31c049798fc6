"""Plan of a run: its parts, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lora_kit.adapter.attach import Coverage
from lora_kit.data.audit.findings import Audit
from lora_kit.data.prepared import Counts
from lora_kit.preflight.advice import Advice
from lora_kit.preflight.checks import CheckResult
from lora_kit.preflight.forecast import Forecast, TimeEstimate
from lora_kit.preflight.guidance import Hint
from lora_kit.preflight.launch_file import LaunchFile
from lora_kit.preflight.memory import MemoryEstimate
from lora_kit.preflight.merged_memory import MergedMemory
from lora_kit.preflight.samples import LabelSpan
from lora_kit.preflight.suite_power import SuitePower
from lora_kit.preflight.thoughts import TaughtThoughts
from lora_kit.recipe.data import Packing
from lora_kit.recipe.recipe import Recipe


@dataclass(frozen=True)
class BackbonePlan:
    """Parts of a plan that need the backbone.

    Attributes:
        fingerprint: digest of the backbone; `None` without its weights.
        checked: names and warnings of the checks that ran.
        hints: changes that the number of examples, memory and padding suggest.
        advice: recommendation of the weights to train, in words.
        samples: first examples, split where supervision begins and ends.
        forecast: memory and time on this machine; `None` with a launch file, a classification head
            or an encoder-decoder.
        timing: time on this machine, for backbones without a forecast.
        memory_per_process: memory of each process that the launch file starts.
        assumed_seconds: time of the training on GPUs with enough memory, as the launch file starts
            it, by their names; assumed, not measured.
        merged: memory of the evaluation of the merged model; `None` without a forecast, or if the
            adapter cannot be merged.
        unused_by_task: items with a column that is not used, by its name, by task.
        attention: attention implementation of the training.
        packing: `data.packing`, its default resolved for the machine of the training.
    """

    fingerprint: str | None
    coverage: Coverage
    counts: Counts
    audit: Audit
    checked: CheckResult
    hints: tuple[Hint, ...]
    advice: Advice
    samples: tuple[tuple[LabelSpan, ...], ...]
    forecast: Forecast | None
    timing: TimeEstimate | None
    memory_per_process: MemoryEstimate | None
    assumed_seconds: Mapping[str, float]
    merged: MergedMemory | None
    unused_by_task: Mapping[str, Mapping[str, int]]
    attention: str
    packing: Packing


@dataclass(frozen=True)
class Plan:
    """Plan of a recipe's run.

    Attributes:
        rows: number of training rows, replay included.
        replay_rows: number of replay rows among `rows`.
        validation_rows: number of held-out rows.
        formats: detected format of each source's rows.
        launch_file: launch file of the planned run.
        missing_backbone: reason why the backbone is not on this machine, else `None`.
        without_weights: reason why the plan is made from the backbone's shapes alone, else `None`.
        on_backbone: parts that need the backbone; `None` without one.
        thoughts: thoughts before the answers of training rows; `None` without a backbone.
        seeds: number of seeds that `run` is to train.
    """

    recipe: Recipe
    rows: int
    replay_rows: int
    validation_rows: int
    formats: dict[str, str]
    optimizer_steps: int
    micro_batch_size: int
    suites: tuple[SuitePower, ...]
    launch_file: LaunchFile | None
    missing_backbone: str | None = None
    without_weights: str | None = None
    on_backbone: BackbonePlan | None = None
    thoughts: TaughtThoughts | None = None
    seeds: int = 1

    @property
    def trainings(self) -> dict[str, int]:
        """Number of trainings, at most, where it is more than one: of seeds, folds, a sweep."""
        sweep = self.recipe.sweep
        found = {"seeds": self.seeds} if self.seeds > 1 else {}
        if folds := self.recipe.data.cross_validation:
            sources = len(self.recipe.data.train)
            found["folds"] = sources if folds == "sources" else folds
        return found | ({"sweep": sweep.trials * sweep.seeds} if sweep else {})

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        found = self.on_backbone
        per_process = found.memory_per_process if found else None
        errors = found.audit.label_errors if found else None
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "rows": self.rows,
            "replay_rows": self.replay_rows,
            "validation_rows": self.validation_rows,
            "formats": self.formats,
            "optimizer_steps": self.optimizer_steps,
            "trainings": self.trainings,
            "micro_batch_size": self.micro_batch_size,
            "suites": [suite.to_dict() for suite in self.suites],
            "missing_backbone": self.missing_backbone,
            "without_weights": self.without_weights,
            "thoughts": asdict(self.thoughts) if self.thoughts else None,
            "fingerprint": found.fingerprint if found else None,
            "coverage": found.coverage.to_dict() if found else None,
            "counts": found.counts.to_dict() if found else None,
            "unused_by_task": {name: dict(one) for name, one in found.unused_by_task.items()}
            if found
            else {},
            "audit": found.audit.to_dict() if found else None,
            "label_errors": errors.to_dict() if errors else None,
            "checked": asdict(found.checked) if found else None,
            "forecast": found.forecast.to_dict() if found and found.forecast else None,
            "timing": found.timing.to_dict() if found and found.timing else None,
            "launch": self.launch_file.to_dict() if self.launch_file else None,
            "memory_per_process": per_process.to_dict() if per_process else None,
            "assumed_seconds": dict(found.assumed_seconds) if found else {},
            "merged_memory": found.merged.to_dict() if found and found.merged else None,
            "samples": [[asdict(span) for span in spans] for spans in found.samples]
            if found
            else [],
            "hints": [hint.to_dict() for hint in found.hints] if found else [],
            "advice": found.advice.to_dict() if found else None,
            "attention": found.attention if found else None,
            "packing": found.packing if found else None,
        }
