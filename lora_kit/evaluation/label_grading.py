"""Grading of labels that a head predicts."""

from __future__ import annotations

import math

import numpy as np

from lora_kit.data.tagged import read_labels, write_labels
from lora_kit.evaluation.item import Graded, Item, Outcome


def grade_labels(item: Item, outcome: Outcome, *, score: str) -> Graded:
    """Compute `jaccard`, `exact_match` and, of a model's answer, `loss` in nats per label.

    The Jaccard index is the number of right predictions divided by the number of labels that are
    right or predicted; 1 if there are none of either. An item with a NaN has no score.

    Args:
        item: item with its targets.
        outcome: logits and decisions in the order of the labels, or another row's labels as text.
        score: name of the score.
    """
    logits = outcome.log_likelihoods
    if any(map(math.isnan, logits)):
        return Graded(None, "")
    true = {name for name, value in item.targets.items() if value}
    if outcome.text:
        predicted = set(read_labels(outcome.text))
    else:
        predicted = {n for n, given in zip(item.targets, outcome.greedy, strict=True) if given}
    either = true | predicted
    measures = {
        "jaccard": len(true & predicted) / len(either) if either else 1.0,
        "exact_match": float(true == predicted),
    }
    if logits:
        signs = np.array([1.0 if value else -1.0 for value in item.targets.values()])
        measures["loss"] = float(np.logaddexp(0.0, -signs * np.array(logits)).mean())
    return Graded(measures.get(score), write_labels(sorted(predicted)), measures)
