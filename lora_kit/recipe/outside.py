"""Models, data and files that a recipe names and does not hold."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.data import SELF, ReplaySpec, SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import TextsSpec


def named_models(recipe: Recipe) -> Iterator[tuple[str, BackboneSpec]]:
    """Yield the field and the specification of each model, the backbone first."""
    yield "backbone", recipe.backbone
    if recipe.training.distillation:
        yield "training.distillation.teacher", recipe.training.distillation.teacher
    augmentation = recipe.data.augmentation
    if augmentation and augmentation.paraphrase:
        yield "data.augmentation.paraphrase.writer", augmentation.paraphrase.writer


def named_sources(recipe: Recipe) -> Iterator[tuple[str, SourceSpec | ReplaySpec | TextsSpec]]:
    """Yield the field and the specification of each source of rows or texts that is read."""
    data, alignment = recipe.data, recipe.training.domain_alignment
    several = {
        "data.train": data.train,
        "data.unlabeled.texts": data.unlabeled.texts if data.unlabeled else (),
        "data.reweight.target": data.reweight.target if data.reweight else (),
        "training.domain_alignment.target": alignment.target if alignment else (),
    }
    for field, sources in several.items():
        for number, source in enumerate(sources):
            yield f"{field}.{number}", source
    if data.replay and data.replay.fraction > 0 and data.replay.source != SELF:
        yield "data.replay", data.replay
    for name, method in recipe.retention.requested.items():
        if isinstance(method, TextsSpec):
            yield f"retention.{name}", method
    for number, source in enumerate(data.validation):
        yield f"data.validation.{number}", source


def named_outside(recipe: Recipe) -> dict[str, str]:
    """Return everything that a recipe names outside of itself, by field."""
    rewards = recipe.grpo.rewards if recipe.grpo else []
    return {
        **{f"{field}.model": spec.model for field, spec in named_models(recipe)},
        **{f"{field}.source": spec.source for field, spec in named_sources(recipe)},
        **{f"grpo.rewards.{n}": one.removeprefix("run:") for n, one in enumerate(rewards)},
        **{f"evaluation.suites.{n}": one for n, one in enumerate(recipe.evaluation.suites)},
    }
