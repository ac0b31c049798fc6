"""The recipe's `classification` section, and what a recipe cannot ask for together with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from lora_kit.objective_spec import HEADED
from lora_kit.schema import NotNegative, Positive, Section

if TYPE_CHECKING:
    from lora_kit.recipe import Recipe

# What a head can be compared with; the others ask a language model, or merge one.
ARMS = {
    "classification": ("base", "adapter", "retrieval", "probe"),
    "reward": ("base", "adapter", "retrieval"),
}
# Of `training`, what a head alone has no use for: it is trained on finished features.
NOT_OF_A_HEAD = {
    "micro_batch_size": "features are small enough for a step at once",
    "batch_tokens": "features are small enough for a step at once",
    "rates": "there is one module",
    "layer_decay": "a head has no layers below it that are trained",
    "unfreeze_steps": "a head has no blocks",
    "gradient_checkpointing": "no activations of the backbone are kept",
}


class ClassificationSpec(Section):
    """A head that chooses one of several classes, on top of the backbone."""

    labels: Annotated[list[str], Field(min_length=2)] | None = None
    """The classes, in the order of the head's outputs; by default those of the training rows,
    sorted."""
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """What a row of a class counts in the loss. `none`: 1; `balanced`: so much that each class
    counts as much as any other, rows / (classes * rows of the class); or numbers by class, 1 where
    none is given."""
    focal_gamma: NotNegative = 0.0
    """Focal loss: a row counts (1 - p)^gamma, p being the probability that its class was given, so
    that what is known already counts little (Lin et al. 2017, arXiv:1708.02002); 0: cross-entropy,
    usual: 2."""

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError("no class twice")
        return labels


def refusals(recipe: Recipe) -> Iterator[str]:
    """What of a recipe does not go together with its objective, each with field and reason."""
    objective = recipe.training.objective
    if objective != "classification" and recipe.classification is not None:
        yield (
            "classification: is read by training.objective: classification alone, and it is "
            f"{objective}; set it, or leave the section out"
        )
    if objective not in HEADED:
        if "probe" in recipe.evaluation.arms:
            yield (
                "evaluation.arms: probe: chooses between classes; with training.objective: "
                "classification alone"
            )
        if recipe.adapter.method == "head":
            yield (
                "adapter.method: head: there is a head with training.objective: classification or "
                "reward alone; a language model's output head is one with its embedding or as "
                "large as it, use lora"
            )
        return
    if objective == "classification":
        yield from _of_data(recipe)
        yield from _of_retention(recipe)
    yield from _of_the_end(recipe)
    if "modules_to_save" in recipe.adapter.options:
        yield ("adapter.options.modules_to_save: the head is saved there by itself; leave it out")
    if recipe.adapter.method == "head":
        for field, why in NOT_OF_A_HEAD.items():
            if getattr(recipe.training, field):
                yield f"training.{field}: with adapter.method: head, {why}; leave it out"


def _of_data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if data.replay is not None:
        yield "data.replay: a head learns rows with a class alone, and nothing to replay has one"
    if data.documents != "cut":
        yield "data.documents: a head reads one text a row, cut at data.max_length"
    for name in ("conflict", "distillation"):
        if getattr(recipe.training, name) is not None:
            yield f"training.{name}: is of what a language model learns; leave it out"
    if data.packing:
        yield "data.packing: a head reads one text a row; set training.batch_tokens instead"
    if data.labels != "assistant":
        yield "data.labels: says what is learned of a conversation; a head learns the row's class"


def _of_retention(recipe: Recipe) -> Iterator[str]:
    for name in ("anchor", "mask", "own_words", "consolidation", "budget"):
        if getattr(recipe.retention, name) is not None:
            yield (
                f"retention.{name}: holds what the base says of texts, and a classifier says "
                "nothing of them; leave it out"
            )


def _of_the_end(recipe: Recipe) -> Iterator[str]:
    possible = ARMS[recipe.training.objective]
    for arm in recipe.evaluation.arms:
        if arm not in possible:
            yield f"evaluation.arms: {arm}: not with a head; possible: {', '.join(possible)}"
    if recipe.merge != type(recipe.merge)():
        yield "merge: a head cannot be merged into a language model; leave the section out"
