"""Plan of a run: all checks and estimates that need no training, from local files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lora_kit.adapter.attach import Coverage, coverage
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.audit.findings import Audit
from lora_kit.data.dataset import mix_replay, open_rows, training_classes, validation_rows
from lora_kit.data.prepared import Counts, PreparedData
from lora_kit.data.row_sets import Rows
from lora_kit.data.tokenization import IGNORE_INDEX, Example
from lora_kit.evaluation.engine.work import plan_work
from lora_kit.evaluation.suite import Suite, load_suites
from lora_kit.preflight.checks import CheckResult
from lora_kit.preflight.forecast import (
    Forecast,
    TimeEstimate,
    estimate_per_process,
    estimate_time,
    forecast,
)
from lora_kit.preflight.guidance import Hint, recipe_hints
from lora_kit.preflight.launch_file import LaunchFile, refuse_impossible_launch
from lora_kit.preflight.memory import MemoryEstimate
from lora_kit.preflight.prepare import PreparedTraining, prepare_training
from lora_kit.preflight.suite_power import SuitePower, compute_suite_power
from lora_kit.recipe.data import SELF
from lora_kit.recipe.objective import HEADED
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.processes import process_state
from lora_kit.training.self_distillation.rows import TrainingRows, read_training_rows
from lora_kit.training.step_sizes import micro_batch_size, optimizer_steps

SAMPLES = 2


@dataclass(frozen=True)
class LabelSpan:
    """Part of an example's text that is either fully supervised or not supervised."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Plan:
    """Plan of a recipe's run.

    Attributes:
        rows: number of training rows, replay included.
        replay_rows: number of replay rows among `rows`.
        validation_rows: number of held-out rows.
        formats: detected format of each source's rows.
        missing_backbone: reason why the backbone is not on this machine, else `None`; without a
            backbone, rows are counted and all later fields except `launch_file` keep their
            defaults.
        checked: names and warnings of the checks that ran.
        forecast: memory and time on this machine; `None` with `launch_file`, a classification head
            or an encoder-decoder.
        timing: time on this machine, for backbones without a forecast.
        launch_file: launch file of the planned run.
        memory_per_process: memory of each process that `launch_file` starts.
        hints: changes that the number of examples suggests.
        samples: first examples, split where supervision begins and ends.
    """

    recipe: Recipe
    rows: int
    replay_rows: int
    validation_rows: int
    formats: dict[str, str]
    optimizer_steps: int
    micro_batch_size: int
    suites: tuple[SuitePower, ...]
    missing_backbone: str | None
    fingerprint: str | None = None
    coverage: Coverage | None = None
    counts: Counts | None = None
    audit: Audit | None = None
    checked: CheckResult | None = None
    forecast: Forecast | None = None
    timing: TimeEstimate | None = None
    launch_file: LaunchFile | None = None
    memory_per_process: MemoryEstimate | None = None
    hints: tuple[Hint, ...] = ()
    samples: tuple[tuple[LabelSpan, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "rows": self.rows,
            "replay_rows": self.replay_rows,
            "validation_rows": self.validation_rows,
            "formats": self.formats,
            "optimizer_steps": self.optimizer_steps,
            "micro_batch_size": self.micro_batch_size,
            "suites": [suite.to_dict() for suite in self.suites],
            "missing_backbone": self.missing_backbone,
            "fingerprint": self.fingerprint,
            "coverage": self.coverage.to_dict() if self.coverage else None,
            "counts": self.counts.to_dict() if self.counts else None,
            "audit": self.audit.to_dict() if self.audit else None,
            "checked": asdict(self.checked) if self.checked else None,
            "forecast": self.forecast.to_dict() if self.forecast else None,
            "timing": self.timing.to_dict() if self.timing else None,
            "launch": self.launch_file.to_dict() if self.launch_file else None,
            "rank": self.memory_per_process.to_dict() if self.memory_per_process else None,
            "hints": [hint.to_dict() for hint in self.hints],
        }


def make_plan(recipe: Recipe, launch_file: LaunchFile | None = None) -> Plan:
    """Check a recipe on this machine and plan its run.

    Problems found by the data audit are part of the plan and are not refused.

    Args:
        recipe: recipe to plan.
        launch_file: launch file of the planned run, on this or other machines; by default the
            launch of this process.

    Raises:
        LoraKitError: from the first stage that refuses.
    """
    if launch_file:
        refuse_impossible_launch(launch_file, recipe)
    suites = load_suites(recipe.evaluation.suites)
    spec = recipe.training
    sources = open_rows(recipe.data, recipe.seed, spec.objective)
    rows, replay = mix_replay(sources, recipe.data, recipe.seed)
    held_out = validation_rows(recipe.data, recipe.seed)
    processes, device = _processes(launch_file)
    known: dict[str, Any] = {
        "recipe": recipe,
        "rows": len(rows),
        "replay_rows": replay,
        "validation_rows": len(held_out),
        "formats": rows.formats(),
        "micro_batch_size": micro_batch_size(spec, processes, device),
        "suites": compute_suite_power(suites, spec.objective in HEADED),
        "launch_file": launch_file,
    }
    try:
        files = resolve(recipe.backbone, allow_network=False)
    except BackboneError as error:
        steps = optimizer_steps(len(rows), spec)
        return Plan(**known, optimizer_steps=steps, missing_backbone=str(error))
    backbone = load(files, recipe.backbone, tuple(training_classes(sources, recipe)))
    read = TrainingRows(rows, replay)
    if recipe.data.replay and recipe.data.replay.source == SELF:
        # Self-distillation generates rows with the backbone.
        read = read_training_rows(recipe, sources, backbone)
        known |= {"rows": len(read.rows), "replay_rows": read.replay}
    return Plan(
        **known,
        missing_backbone=None,
        **_on_backbone(recipe, backbone, (sources, read), suites, launch_file),
    )


def _on_backbone(
    recipe: Recipe,
    backbone: Backbone,
    training: tuple[Rows, TrainingRows],
    suites: Sequence[Suite],
    launch_file: LaunchFile | None,
) -> dict[str, Any]:
    """Return the fields of `Plan` that need a backbone; attach the adapter to it in place."""
    launch = launch_file.launch if launch_file else current_launch()
    work = plan_work(suites, backbone)
    prepared = prepare_training(recipe, launch, backbone, *training, work)
    data, covered = prepared.data.prepared, coverage(prepared.model, recipe.adapter)
    return {
        "optimizer_steps": optimizer_steps(data.size, recipe.training),
        "fingerprint": backbone.fingerprint.digest,
        "coverage": covered,
        "counts": data.counts,
        "audit": prepared.audit,
        "checked": prepared.checked,
        **_estimates(recipe, backbone, prepared, launch_file),
        "hints": recipe_hints(recipe, data.counts, covered.trainable_parameters),
        "samples": _samples(data, backbone),
    }


def _estimates(
    recipe: Recipe, backbone: Backbone, prepared: PreparedTraining, launch_file: LaunchFile | None
) -> dict[str, Any]:
    """Return the fields of `Plan` for memory and time.

    Memory is estimated for decoder-only language models; for other backbones, a step is timed.
    """
    model, data, held_out = prepared.model, prepared.data.prepared, prepared.data.held_out
    assert held_out is not None  # always set by prepare_training
    is_estimated = backbone.head is None and not is_encoder_decoder(backbone.model)
    if launch_file:
        config = backbone.model.config
        memory_per_process = (
            estimate_per_process(recipe, config, data, launch_file) if is_estimated else None
        )
        return {"memory_per_process": memory_per_process}
    if is_estimated:
        return {"forecast": forecast(recipe, backbone, model, data, held_out)}
    if recipe.adapter.method == "head":
        return {}
    return {"timing": estimate_time(recipe, backbone, model, data, held_out)}


def _processes(launch_file: LaunchFile | None) -> tuple[int, torch.device]:
    """Return the number of processes and their device."""
    if launch_file:
        return launch_file.launch.processes, launch_file.device
    state = process_state()
    return state.num_processes, state.device


def _samples(data: PreparedData, backbone: Backbone) -> tuple[tuple[LabelSpan, ...], ...]:
    has_classes = backbone.head is not None and not backbone.head.is_reward
    spans = class_spans if has_classes else supervised_spans
    return tuple(spans(example, backbone.tokenizer) for example in data.examples[:SAMPLES])


def class_spans(example: Example, tokenizer: Any) -> tuple[LabelSpan, ...]:
    """Return an example's text as the input of a classifier, and its class as supervised text."""
    text = tokenizer.decode(list(example.input_ids))
    return LabelSpan(text, supervised=False), LabelSpan(f" {example.label} ", supervised=True)


def supervised_spans(example: Example, tokenizer: Any) -> tuple[LabelSpan, ...]:
    """Return an example's text as the input of the model, split by supervision."""
    spans: list[LabelSpan] = []
    start = 0
    flags = [label != IGNORE_INDEX for label in example.labels]
    for position in range(1, len(flags) + 1):
        if position == len(flags) or flags[position] != flags[start]:
            text = tokenizer.decode(list(example.input_ids[start:position]))
            spans.append(LabelSpan(text, flags[start]))
            start = position
    return tuple(spans)
