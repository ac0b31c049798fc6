"""The plan of a run: everything but the training, from what is on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_kit.adapters import Coverage, attach, coverage
from lora_kit.backbone import Backbone, load, resolve
from lora_kit.data.dataset import (
    Counts,
    PreparedData,
    prepare,
    training_rows,
    validation_rows,
)
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.errors import BackboneError
from lora_kit.evaluation.engine.work import plan_work
from lora_kit.evaluation.suite import load_suites
from lora_kit.preflight.checks import Situation, run_checks
from lora_kit.preflight.detectable import SuitePower, detectable
from lora_kit.processes import process_state
from lora_kit.recipe import Recipe
from lora_kit.training.trainer import micro_batch_size, optimizer_steps

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
        missing_backbone: why the backbone is not on this machine, else `None`; without it rows
            are counted, tokens, coverage and samples are not.
    """

    recipe: Recipe
    rows: int
    validation_rows: int
    optimizer_steps: int
    micro_batch_size: int
    suites: tuple[SuitePower, ...]
    missing_backbone: str | None
    fingerprint: str | None = None
    coverage: Coverage | None = None
    counts: Counts | None = None
    samples: tuple[tuple[Span, ...], ...] = ()
    checks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "rows": self.rows,
            "validation_rows": self.validation_rows,
            "optimizer_steps": self.optimizer_steps,
            "micro_batch_size": self.micro_batch_size,
            "suites": [suite.to_dict() for suite in self.suites],
            "missing_backbone": self.missing_backbone,
            "fingerprint": self.fingerprint,
            "coverage": self.coverage.to_dict() if self.coverage else None,
            "counts": self.counts.to_dict() if self.counts else None,
            "checks": list(self.checks),
            "warnings": list(self.warnings),
        }


def make_plan(recipe: Recipe) -> Plan:
    """Check all of a recipe that can be checked here and say what it would do.

    Raises:
        LoraKitError: of the first stage that refuses.
    """
    suites = load_suites(recipe.evaluation.suites)
    rows, replay = training_rows(recipe.data, recipe.seed)
    held_out = validation_rows(recipe.data, recipe.seed)
    state = process_state()
    spec = recipe.training
    micro = micro_batch_size(spec, state.num_processes, state.device)
    known: dict[str, Any] = {
        "recipe": recipe,
        "rows": len(rows),
        "validation_rows": len(held_out),
        "optimizer_steps": optimizer_steps(len(rows), spec, micro, state.num_processes),
        "micro_batch_size": micro,
        "suites": detectable(suites),
    }
    try:
        files = resolve(recipe.backbone, allow_network=False)
    except BackboneError as error:
        return Plan(**known, missing_backbone=str(error))
    backbone = load(files, recipe.backbone)
    data = prepare(rows, backbone.tokenizer, recipe.data, replay)
    model = attach(backbone, recipe.adapter, recipe.seed)
    checked = run_checks(Situation(recipe, backbone=backbone, model=model, examples=data.examples))
    # What is wrong with an item shows only when it is tokenized.
    plan_work(suites, backbone)
    return Plan(
        **known,
        missing_backbone=None,
        fingerprint=backbone.fingerprint.digest,
        coverage=coverage(model),
        counts=data.counts,
        samples=_samples(data, backbone),
        checks=checked.names,
        warnings=checked.warnings,
    )


def _samples(data: PreparedData, backbone: Backbone) -> tuple[tuple[Span, ...], ...]:
    return tuple(masked_text(example, backbone.tokenizer) for example in data.examples[:SAMPLES])


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
