"""The plan of a run: everything but the training, from what is on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lora_kit.adapter.attach import Coverage, coverage
from lora_kit.backbone.encoder_decoder import is_divided
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import Backbone, load
from lora_kit.data.audit.findings import Audit
from lora_kit.data.dataset import (
    Counts,
    PreparedData,
    open_rows,
    training_classes,
    validation_rows,
    with_replay,
)
from lora_kit.data.row_sets import Rows
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.evaluation.engine.work import plan_work
from lora_kit.evaluation.suite import Suite, load_suites
from lora_kit.preflight.checks import Checked
from lora_kit.preflight.detectable import SuitePower, detectable
from lora_kit.preflight.forecast import Forecast, Timing, estimate_of_a_rank, forecast, timing
from lora_kit.preflight.guidance import Hint, guidance
from lora_kit.preflight.launch_file import LaunchFile, require_possible
from lora_kit.preflight.memory import MemoryEstimate
from lora_kit.preflight.ready import Ready, make_ready
from lora_kit.recipe.data import SELF
from lora_kit.recipe.objective import HEADED
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.processes import process_state
from lora_kit.training.arguments import micro_batch_size, optimizer_steps
from lora_kit.training.self_distillation.rows import ReadRows, read_rows

SAMPLES = 2


@dataclass(frozen=True)
class Span:
    """A stretch of an example's text that is supervised throughout, or not at all."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Attributes:
        replay_rows: how many of the rows are replayed.
        formats: of each source's rows, as they were recognised.
        missing_backbone: why the backbone is not on this machine, else `None`; without it rows
            are counted, all that follows is not known.
        checked: the checks that were run, and what they warn of.
        forecast: for this machine; `None` where it would be launched by a file, a head is
            learned, or the backbone has an encoder besides.
        timing: where there is no forecast for what the backbone is.
        launch_file: by which it would be launched.
        rank: memory of each process that `launch_file` starts.
        hints: what the number of examples speaks for.
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
    checked: Checked | None = None
    forecast: Forecast | None = None
    timing: Timing | None = None
    launch_file: LaunchFile | None = None
    rank: MemoryEstimate | None = None
    hints: tuple[Hint, ...] = ()
    samples: tuple[tuple[Span, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
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
            "rank": self.rank.to_dict() if self.rank else None,
            "hints": [hint.to_dict() for hint in self.hints],
        }


def make_plan(recipe: Recipe, launch_file: LaunchFile | None = None) -> Plan:
    """Check all of a recipe that can be checked here and say what it would do.

    What the audit would refuse is in the plan, so that it can be looked at.

    Args:
        recipe: what to plan.
        launch_file: by which it would be launched, on these machines or others; by default as this
            process was.

    Raises:
        LoraKitError: of the first stage that refuses.
    """
    if launch_file:
        require_possible(launch_file, recipe)
    suites = load_suites(recipe.evaluation.suites)
    spec = recipe.training
    sources = open_rows(recipe.data, recipe.seed, spec.objective)
    rows, replay = with_replay(sources, recipe.data, recipe.seed)
    held_out = validation_rows(recipe.data, recipe.seed)
    processes, device = _processes(launch_file)
    known: dict[str, Any] = {
        "recipe": recipe,
        "rows": len(rows),
        "replay_rows": replay,
        "validation_rows": len(held_out),
        "formats": rows.formats(),
        "micro_batch_size": micro_batch_size(spec, processes, device),
        "suites": detectable(suites, spec.objective in HEADED),
        "launch_file": launch_file,
    }
    try:
        files = resolve(recipe.backbone, allow_network=False)
    except BackboneError as error:
        steps = optimizer_steps(len(rows), spec)
        return Plan(**known, optimizer_steps=steps, missing_backbone=str(error))
    backbone = load(files, recipe.backbone, tuple(training_classes(sources, recipe)))
    read = ReadRows(rows, replay)
    if recipe.data.replay and recipe.data.replay.source == SELF:
        # Only now that there is a backbone, it can be asked.
        read = read_rows(recipe, sources, backbone)
        known |= {"rows": len(read.rows), "replay_rows": read.replay}
    return Plan(
        **known,
        missing_backbone=None,
        **_on_backbone(recipe, backbone, (sources, read), suites, launch_file),
    )


def _on_backbone(
    recipe: Recipe,
    backbone: Backbone,
    training: tuple[Rows, ReadRows],
    suites: Sequence[Suite],
    launch_file: LaunchFile | None,
) -> dict[str, Any]:
    """What shows once a backbone is there: fields of `Plan`. The adapter is attached to it."""
    ready = make_ready(recipe, backbone, *training, plan_work(suites, backbone))
    data, covered = ready.data.prepared, coverage(ready.model, recipe.adapter)
    return {
        "optimizer_steps": optimizer_steps(data.size, recipe.training),
        "fingerprint": backbone.fingerprint.digest,
        "coverage": covered,
        "counts": data.counts,
        "audit": ready.audit,
        "checked": ready.checked,
        **_needs(recipe, backbone, ready, launch_file),
        "hints": guidance(recipe, data.counts, covered.trainable_parameters),
        "samples": _samples(data, backbone),
    }


def _needs(
    recipe: Recipe, backbone: Backbone, ready: Ready, launch_file: LaunchFile | None
) -> dict[str, Any]:
    """Time and memory: fields of `Plan`.

    Shapes alone tell what a decoder takes; of the others, a step is timed.
    """
    model, data, held_out = ready.model, ready.data.prepared, ready.data.held_out
    assert held_out is not None  # read with the rest
    is_estimated = backbone.head is None and not is_divided(backbone.model)
    if launch_file:
        config = backbone.model.config
        rank = estimate_of_a_rank(recipe, config, data, launch_file) if is_estimated else None
        return {"rank": rank}
    if is_estimated:
        return {"forecast": forecast(recipe, backbone, model, data, held_out)}
    if recipe.adapter.method == "head":
        return {}
    return {"timing": timing(recipe, backbone, model, data, held_out)}


def _processes(launch_file: LaunchFile | None) -> tuple[int, torch.device]:
    """How many there would be, and what they would compute on."""
    if launch_file:
        return launch_file.launch.processes, launch_file.device
    state = process_state()
    return state.num_processes, state.device


def _samples(data: PreparedData, backbone: Backbone) -> tuple[tuple[Span, ...], ...]:
    has_classes = backbone.head is not None and not backbone.head.is_reward
    shown = classified_text if has_classes else masked_text
    return tuple(shown(example, backbone.tokenizer) for example in data.examples[:SAMPLES])


def classified_text(example: Example, tokenizer: Any) -> tuple[Span, ...]:
    """An example's text as a classifier sees it, and the class that is learned of it."""
    text = tokenizer.decode(list(example.input_ids))
    return Span(text, supervised=False), Span(f" {example.label} ", supervised=True)


def masked_text(example: Example, tokenizer: Any) -> tuple[Span, ...]:
    """An example's text as the model sees it, cut where supervision begins and ends."""
    spans: list[Span] = []
    start = 0
    flags = [label != IGNORED for label in example.labels]
    for position in range(1, len(flags) + 1):
        if position == len(flags) or flags[position] != flags[start]:
            text = tokenizer.decode(list(example.input_ids[start:position]))
            spans.append(Span(text, flags[start]))
            start = position
    return tuple(spans)
