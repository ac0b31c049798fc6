"""Evaluations of a tiny model with an adapter, on two small suites."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.evaluation.arms.models import loaded_arms
from lora_kit.evaluation.engine.planning import plan_work
from lora_kit.evaluation.harness import (
    EvaluatedBackbone,
    Evaluation,
    EvaluationPlan,
    run_evaluation,
)
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.reporting.report import ReportFacts
from lora_kit.evaluation.suite import Suite
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.sections import EvaluationSpec
from lora_kit.runs.open_model import LoadedModel, OpenModel
from lora_kit.runs.session import Subject

KEEP = {
    "name": "keep",
    "role": "retention",
    "tasks": [
        {
            "name": "quiz",
            "kind": "multiple_choice",
            "source": "general-knowledge",
            "limit": 16,
            "shots": 2,
            "margin": 0.1,
        },
        {"name": "prose", "kind": "loss", "source": "python-reference", "limit": 8, "margin": 0.1},
    ],
}
GAIN = {
    "name": "gain",
    "role": "gain",
    "tasks": [
        {
            "name": "lines",
            "kind": "generation",
            "metric": "chrf",
            "source": "stdlib-docstrings",
            "limit": 6,
            "max_new_tokens": 4,
        }
    ],
}


def evaluation_of(backbone: Backbone, folder: Path) -> Callable[..., Evaluation]:
    """Return a function that evaluates an adapter of a tiny model, whose `lora_B` is drawn."""
    model = attach(backbone, AdapterSpec(rank=4), seed=0)

    def run(
        b: float = 0.0,
        arms: Sequence[str] = ("base", "adapter"),
        suites: Sequence[dict[str, Any]] = (KEEP, GAIN),
        to: str = "out",
        no_cache: bool = False,
    ) -> Evaluation:
        adapter = folder / f"adapter-{b}"
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn_like(parameter) * b
        if not adapter.exists():
            model.save_pretrained(adapter)
        spec = EvaluationSpec()
        opened = OpenModel(lambda: LoadedModel(backbone, model))
        subject = Subject(opened, adapter, None, spec, folder / to, "t", {})
        chosen = [Suite.model_validate(suite) for suite in suites]
        return run_evaluation(
            EvaluationPlan(
                backbone=EvaluatedBackbone.of(backbone),
                adapter=adapter,
                suites=chosen,
                models=loaded_arms(subject, list(arms)),
                directory=folder / to,
                facts=ReportFacts("t", {}),
                no_cache=no_cache,
            ),
            plan_work(chosen, backbone, 2 if "fewshot" in arms else 0),
        )

    return run


def scores(entries: Sequence[Entry]) -> dict[tuple[str, str, str], float | None]:
    found = {(e.task, e.arm, e.item): e.score for e in entries}
    assert len(found) == len(entries)
    return found
