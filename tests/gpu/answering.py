"""Scoring and generation of base and adapter through the package's own engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from tests.gpu.ceilings import synchronize
from tests.gpu.material import Setting
from tests.gpu.runner import Case, Figures
from tests.gpu.speed import Bases, adapted, recipe
from tests.gpu.variants import Variant

# Items of each kind, at the 8B shape and on a small one.
KINDS = {
    "choices": ("multiple_choice", "general-knowledge", {}, (256, 6)),
    "prose": ("loss", "python-reference", {"max_length": 512}, (64, 4)),
    "texts": ("instructions", "instructions", {"max_new_tokens": 64}, (64, 4)),
}


def cases(setting: Setting, bases: Bases) -> Sequence[Case]:
    """Return one measurement for each kind of items, and for nf4 weights."""
    found = []
    for quantization in ("none",) if setting.is_tiny else ("none", "nf4"):
        needs = () if quantization == "none" else ("bitsandbytes",)
        for kind in KINDS:
            name = kind if quantization == "none" else f"{kind}-{quantization}"
            found.append(Case(name, partial(answered, setting, bases, kind, quantization), needs))
    return found


def answered(setting: Setting, bases: Bases, kind: str, quantization: str) -> Figures:
    """Return items and tokens per second of both arms, and how often the two differ."""
    with evaluating(setting, bases, quantization) as (backbone, model):
        task = _task(kind, setting.is_tiny)
        entries, seconds = evaluate(backbone, model, task)
    figures: Figures = {"items_per_second": len(entries) / seconds, "seconds": seconds}
    for arm in ("base", "adapter"):
        own = [entry for entry in entries if entry.arm == arm]
        spent = sum(entry.seconds for entry in own)
        figures[arm] = {
            "items": len(own),
            "items_per_second": len(own) / spent,
            "tokens_per_second": sum(entry.tokens for entry in own) / spent,
        }
    return figures


@contextmanager
def evaluating(setting: Setting, bases: Bases, quantization: str) -> Iterator[tuple[Any, Any]]:
    """Yield a backbone and a model whose adapter does something, in evaluation mode."""
    variant = Variant("answering", quantization)
    chosen = recipe(setting, variant)
    with adapted(setting, bases, variant, chosen) as (backbone, model):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        yield backbone, model.eval()


def _task(kind: str, is_tiny: bool) -> dict[str, Any]:
    name, source, options, (many, few) = KINDS[kind]
    limit = few if is_tiny else many
    if is_tiny and "max_new_tokens" in options:
        options = {"max_new_tokens": 4}
    return {"name": kind, "kind": name, "source": source, "limit": limit, "margin": 0.5, **options}


def evaluate(backbone: Any, model: Any, task: dict[str, Any]) -> tuple[list[Any], float]:
    """Evaluate base and adapter on a task and return the entries of both, and the seconds."""
    from lora_kit.evaluation.engine.arm import Arm, EvaluationContext, LoadedArms
    from lora_kit.evaluation.engine.run import evaluate_models
    from lora_kit.evaluation.engine.work import plan_work
    from lora_kit.evaluation.suite import Suite
    from lora_kit.modeling.generation import stop_token_ids
    from lora_kit.modeling.modes import adapter_disabled

    suite = Suite.model_validate({"name": "first-look", "role": "retention", "tasks": [task]})
    work = plan_work([suite], backbone)
    arms = (Arm("base", "base", adapter_disabled), Arm("adapter", "adapter", nullcontext))
    journal: Any = _Journal()
    stops = stop_token_ids(backbone)
    context = EvaluationContext(backbone.tokenizer, stops, journal, {}, no_cache=True)
    synchronize()
    started = time.perf_counter()
    evaluate_models([LoadedArms(lambda: model, arms)], work, context)
    synchronize()
    return journal.entries, time.perf_counter() - started


class _Journal:
    """Journal that keeps its entries in memory."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def append(self, records: Sequence[tuple[str, Any]]) -> None:
        self.entries += [entry for _, entry in records]
