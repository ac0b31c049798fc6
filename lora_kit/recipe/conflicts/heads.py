"""Rules about objectives that train a head: classes, numbers, labels and rewards."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.classification import NOT_OF_A_HEAD
from lora_kit.recipe.conflicts.objective import OBJECTIVE, OF_LANGUAGE_MODELING
from lora_kit.recipe.objective import HEADED, NEW_HEADS, TEXT_HEADS, HeadObjective
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import HEAD_ARMS, PROBE, MergeSpec, RecipeSections

# Head and target of a row, by the objective, for reasons of refusals.
WORDS: dict[HeadObjective, tuple[str, str]] = {
    "classification": ("a classifier", "class"),
    "regression": ("a regression", "number"),
    "multi-label": ("a multi-label head", "list of labels"),
}


def head_without_objective(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse what needs a head where none is trained."""
    objective = recipe.training.objective
    if objective in HEADED:
        return  # `arms_of_a_head` knows their arms
    if PROBE in recipe.evaluation.arms:
        yield conflict(
            "evaluation.arms",
            OBJECTIVE,
            reason=f"probe chooses between classes, and {OBJECTIVE} is {objective}",
            fix=f"remove probe, or use objective: {' or '.join(TEXT_HEADS)}",
        )
    if recipe.adapter.method == "head":
        yield conflict(
            "adapter.method",
            OBJECTIVE,
            reason=f"head needs objective {' or '.join(NEW_HEADS)}; a language model's output head "
            f"is as large as its embedding ({OBJECTIVE} is {objective})",
            fix="use lora",
        )


def text_head_data(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse fields of `data` and `training` that a head of texts does not read."""
    data, training = recipe.data, recipe.training
    if training.objective not in TEXT_HEADS:
        return
    head, target = WORDS[training.objective]
    asked = {
        "data.replay": (data.replay, f"replayed rows have no {target}"),
        "data.overflow": (data.overflow != "truncate", f"{head} reads one text a row"),
        "data.packing": (data.packing, f"{head} reads one text a row"),
        "data.train_on": (data.train_on != "assistant", f"{head} trains on the row's {target}"),
        **{
            f"training.{name}": (getattr(training, name), "needs a language model")
            for name in OF_LANGUAGE_MODELING
        },
    }
    for field, (is_set, reason) in asked.items():
        if is_set:
            fix = "set training.max_tokens_per_batch instead" if field == "data.packing" else ""
            yield conflict(field, OBJECTIVE, reason=reason, fix=fix or "remove it")


def label_errors_of_classes(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse a search for label errors without classes, and options of a search without one."""
    audit = recipe.data.audit
    if audit.label_errors != "none" and recipe.training.objective != "classification":
        yield conflict(
            "data.audit.label_errors",
            OBJECTIVE,
            reason="only rows of a classification have labels to check "
            f"({OBJECTIVE} is {recipe.training.objective})",
            given=audit.label_errors,
            fix="remove it",
        )
    if audit.label_error_folds != "clusters" and audit.label_errors == "none":
        yield conflict(
            "data.audit.label_error_folds",
            "data.audit.label_errors",
            reason="has no effect without data.audit.label_errors",
            given=audit.label_error_folds,
            fix="set data.audit.label_errors=show, or remove it",
        )


def text_head_retention(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse retention methods, which need a language model, for a head of texts."""
    objective = recipe.training.objective
    if objective not in TEXT_HEADS:
        return
    for name in recipe.retention.requested:
        yield conflict(
            f"retention.{name}",
            OBJECTIVE,
            reason=f"preserves a language model's outputs, and {WORDS[objective][0]} has none",
        )


def arms_of_a_head(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse arms and merges that need a language model."""
    objective = recipe.training.objective
    if objective not in HEADED:
        return
    possible = HEAD_ARMS[objective]
    for arm in recipe.evaluation.arms:
        if arm not in possible:
            yield conflict(
                "evaluation.arms",
                OBJECTIVE,
                reason=f"the objective {objective} has no such arm",
                given=arm,
                fix=f"use {', '.join(possible)}",
            )
    if recipe.merge != MergeSpec():
        yield conflict(
            "merge",
            OBJECTIVE,
            reason="vectors of texts are computed with the adapter on its backbone"
            if objective == "embedding"
            else "a head cannot be merged into a language model",
            fix="remove the section",
        )


def options_of_a_head(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse options of the adapter and the training that mean nothing with a head."""
    if recipe.training.objective not in NEW_HEADS:
        return
    if "modules_to_save" in recipe.adapter.options:
        yield conflict(
            "adapter.options.modules_to_save",
            OBJECTIVE,
            reason="the head is saved there anyway",
        )
    if recipe.adapter.method != "head":
        return
    for name, reason in NOT_OF_A_HEAD.items():
        if getattr(recipe.training, name):
            yield conflict(
                f"training.{name}",
                "adapter.method",
                reason=f"with adapter.method head, {reason}",
            )
