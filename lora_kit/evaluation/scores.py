"""Scores of tasks whose kind has several: units, and which single items have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TaskKind = Literal[
    "loss",
    "multiple_choice",
    "classification",
    "regression",
    "multi_label",
    "token_classification",
    "retrieval",
    "similarity",
    "generation",
    "instructions",
    "judge",
    "lm_eval",
]
ScoreName = Literal[
    "accuracy",
    "accuracy_per_byte",
    "accuracy_per_token",
    "loss",
    "macro_f1",
    "squared_error",
    "r2",
    "rmse",
    "spearman",
    "jaccard",
    "exact_match",
    "micro_f1",
    "mean_average_precision",
    "entity_f1",
    "relaxed_entity_f1",
    "ndcg",
    "recall_at_1",
    "recall_at_10",
    "reciprocal_rank",
]


@dataclass(frozen=True)
class Score:
    """Score of a task.

    Attributes:
        unit: unit in reports.
        higher_is_better: true if a higher score is better.
        of_items: false if the score is defined for all items together only.
        is_binary: true if the score of an item is always 0 or 1.
    """

    unit: str
    higher_is_better: bool = True
    of_items: bool = True
    is_binary: bool = False


LIKELIHOODS: Mapping[ScoreName, Score] = {
    "accuracy": Score("accuracy", is_binary=True),
    "accuracy_per_byte": Score("accuracy", is_binary=True),
    "accuracy_per_token": Score("accuracy", is_binary=True),
    "loss": Score("nats", higher_is_better=False),
}
# Scores of a kind; the first is the default, and the first of single items is that of items.
SCORES: Mapping[TaskKind, Mapping[ScoreName, Score]] = {
    "multiple_choice": LIKELIHOODS,
    "classification": {
        **LIKELIHOODS,
        "macro_f1": Score("macro-F1", of_items=False),
        "mean_average_precision": Score("mean average precision", of_items=False),
    },
    "regression": {
        "squared_error": Score("squared error", higher_is_better=False),
        "r2": Score("R²", of_items=False),
        "rmse": Score("RMSE", higher_is_better=False, of_items=False),
        "spearman": Score("Spearman's ρ", of_items=False),
    },
    "multi_label": {
        "jaccard": Score("Jaccard index"),
        "exact_match": Score("exact match", is_binary=True),
        "loss": Score("nats per label", higher_is_better=False),
        "micro_f1": Score("micro-F1", of_items=False),
        "macro_f1": Score("macro-F1 of labels", of_items=False),
        "mean_average_precision": Score("mAP", of_items=False),
    },
    "token_classification": {
        "entity_f1": Score("entity F1", of_items=False),
        "relaxed_entity_f1": Score("relaxed entity F1", of_items=False),
        "jaccard": Score("Jaccard index of entities"),
        "exact_match": Score("exact match", is_binary=True),
        "accuracy": Score("accuracy of words"),
        "loss": Score("nats per word", higher_is_better=False),
    },
    "retrieval": {
        "ndcg": Score("nDCG@10"),
        "recall_at_1": Score("recall@1"),
        "recall_at_10": Score("recall@10"),
        "reciprocal_rank": Score("reciprocal rank"),
    },
    "similarity": {
        "spearman": Score("Spearman's ρ", of_items=False),
        "squared_error": Score("squared error", higher_is_better=False),
    },
}


def item_score(kind: TaskKind) -> ScoreName | None:
    """Return the name of the score of single items; `None` for a kind with a single score."""
    return next((name for name, one in SCORES.get(kind, {}).items() if one.of_items), None)


# Kinds that only a head answers.
OF_HEADS: tuple[TaskKind, ...] = (
    "regression",
    "multi_label",
    "token_classification",
    "retrieval",
    "similarity",
)
# Unit of single items' scores, by the unit of a score of all items together.
ITEM_UNITS: Mapping[str, str] = {
    one.unit: next(score.unit for score in scores.values() if score.of_items)
    for scores in SCORES.values()
    for one in scores.values()
    if not one.of_items
}
