"""Rules about objectives that train a head: classes, numbers, labels, tags and rewards."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.classification import NOT_OF_A_HEAD
from lora_kit.recipe.conflicts.objective import OBJECTIVE, OF_LANGUAGE_MODELING
from lora_kit.recipe.objective import (
    HEADED,
    MERGED_HEADS,
    NEW_HEADS,
    TEXT_HEADS,
    WHOLE_TEXT_HEADS,
    HeadObjective,
)
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import (
    HEAD_ARMS,
    NOT_PLAIN,
    PLAIN,
    PROBE,
    RETRIEVAL,
    MergeSpec,
    RecipeSections,
)

# Head and target of a row, by the objective, for reasons of refusals.
WORDS: dict[HeadObjective, tuple[str, str]] = {
    "classification": ("a classifier", "class"),
    "regression": ("a regression", "number"),
    "multi-label": ("a multi-label head", "list of labels"),
    "token-classification": ("a token classifier", "tags"),
}

# Reasons why an objective has no arm `retrieval`.
NO_RETRIEVAL: dict[HeadObjective, str] = {
    "token-classification": ": the tags of another text do not fit the words of this one",
}

# Objectives whose rows can be added to or weighed, by the field of `data`.
ROWS_CHANGED: dict[str, tuple[HeadObjective, ...]] = {
    "unlabeled": ("classification",),
    "reweight": WHOLE_TEXT_HEADS,
    "augmentation": WHOLE_TEXT_HEADS,
}


def head_without_objective(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse what needs a head where none is trained."""
    objective = recipe.training.objective
    if objective in HEADED:
        return  # `arms_of_a_head` knows their arms
    reasons = {
        PROBE: f"probe chooses between classes, and {OBJECTIVE} is {objective}",
        PLAIN: f"plain is a head without added rows, and {OBJECTIVE} is {objective}",
    }
    for arm, reason in reasons.items():
        if arm in recipe.evaluation.arms:
            yield conflict(
                "evaluation.arms",
                OBJECTIVE,
                reason=reason,
                fix=f"remove {arm}, or use objective: {' or '.join(TEXT_HEADS)}",
            )
    if recipe.adapter.method == "head":
        yield conflict(
            "adapter.method",
            OBJECTIVE,
            reason=f"head needs objective {' or '.join((*NEW_HEADS, *MERGED_HEADS))}; a language "
            f"model's output head is as large as its embedding ({OBJECTIVE} is {objective})",
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
    needs_folds = audit.label_errors != "none" or recipe.data.unlabeled is not None
    if audit.label_error_folds != "clusters" and not needs_folds:
        yield conflict(
            "data.audit.label_error_folds",
            "data.audit.label_errors",
            reason="has no effect without data.audit.label_errors or data.unlabeled",
            given=audit.label_error_folds,
            fix="set data.audit.label_errors=show, or remove it",
        )


def changed_rows_of_heads(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse added and weighed rows without a head that reads them, and their arm without them."""
    objective, data = recipe.training.objective, recipe.data
    alignment = recipe.training.domain_alignment
    for name in data.changed:
        if objective not in ROWS_CHANGED[name]:
            yield conflict(
                f"data.{name}",
                OBJECTIVE,
                reason=f"works with {' or '.join(ROWS_CHANGED[name])} only",
                fix="remove it",
            )
    if data.cross_validation is not None and objective not in WHOLE_TEXT_HEADS:
        yield conflict(
            "data.cross_validation",
            OBJECTIVE,
            reason=f"works with {' or '.join(WHOLE_TEXT_HEADS)} only",
            fix="remove it, and run --seeds for the spread between trainings",
        )
    sources = {
        "data.unlabeled.texts": data.unlabeled.texts if data.unlabeled else (),
        "data.reweight.target": data.reweight.target if data.reweight else (),
        "training.domain_alignment.target": alignment.target if alignment else (),
    }
    for field, specs in sources.items():
        for number, spec in enumerate(specs):
            if spec.weight is not None:
                yield conflict(
                    f"{field}.{number}.weight",
                    "data.train",
                    reason="only the sources of data.train are a mixture",
                    fix="remove it",
                )
    is_asked = PLAIN in recipe.evaluation.arms and objective in WHOLE_TEXT_HEADS
    if is_asked and not recipe.left_out_of_plain:
        yield conflict(
            "evaluation.arms",
            "data",
            reason=f"plain is the training without {', '.join(NOT_PLAIN)}, and there is none",
            fix="remove plain",
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
            why = NO_RETRIEVAL.get(objective, "") if arm == RETRIEVAL else ""
            yield conflict(
                "evaluation.arms",
                OBJECTIVE,
                reason=f"the objective {objective} has no such arm{why}",
                given=arm,
                fix=f"use {', '.join(possible)}",
            )
    if recipe.merge != MergeSpec() and objective not in MERGED_HEADS:
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
