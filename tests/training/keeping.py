"""Recipes, models and texts for tests of the retention methods."""

from typing import Any

import torch

from lora_kit.adapter.attach import attach
from lora_kit.backbone.load import Backbone
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.retention import KlSpec
from lora_kit.training.retention.kl import KlPenalty
from lora_kit.training.retention.texts import read_retention_texts

SPEC = KlSpec(rows=3, length=24)


def changed(recipe: Recipe, retention: dict[str, Any], **training: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["retention"] = retention
    document["training"] |= training
    return Recipe.model_validate(document)


def disturbed(backbone: Backbone, recipe: Recipe, size: float = 0.05) -> Any:
    model = attach(backbone, recipe.adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return model


def kl_penalty_of(model: Any, backbone: Backbone, rows: int = 2) -> KlPenalty:
    texts = read_retention_texts(SPEC, backbone.tokenizer, 0, "retention.kl", limit=8)
    return KlPenalty(model, texts.examples, SPEC, 0, backbone.tokenizer.pad_token_id, rows, None)


def gradient(model: Any) -> torch.Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)
