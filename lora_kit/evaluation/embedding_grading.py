"""Grading of ranked documents and of similarities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_kit.data.scored import SCORE, write_numbers
from lora_kit.evaluation.item import Graded, Item, Outcome

# Documents that nDCG and the larger recall look at.
DEPTH = 10


def grade_ranks(_: Item, outcome: Outcome, *, score: str) -> Graded:
    """Compute `ndcg`, `recall_at_1`, `recall_at_10` and `reciprocal_rank` of a query.

    A query with a NaN has no score.

    Args:
        outcome: ranks of the right documents, and the first document as text.
        score: name of the score.
    """
    ranks = outcome.log_likelihoods
    if any(map(math.isnan, ranks)):
        return Graded(None, "")
    measures = {
        "ndcg": ndcg(ranks),
        "recall_at_1": _recall(ranks, 1),
        "recall_at_10": _recall(ranks, DEPTH),
        "reciprocal_rank": 1 / min(ranks),
    }
    return Graded(measures[score], outcome.text, measures)


def ndcg(ranks: Sequence[float]) -> float:
    """Return the normalised discounted cumulative gain of the first ten documents.

    The sum of 1 / log2(1 + rank) over the right documents among them, divided by the largest
    possible sum (Järvelin & Kekäläinen 2002, ACM Transactions on Information Systems 20:422).

    Args:
        ranks: rank of each right document, from 1.
    """
    gains = [1 / math.log2(1 + rank) for rank in ranks if rank <= DEPTH]
    ideal = [1 / math.log2(1 + rank) for rank in range(1, min(len(ranks), DEPTH) + 1)]
    return sum(gains) / sum(ideal)


def _recall(ranks: Sequence[float], depth: int) -> float:
    return sum(rank <= depth for rank in ranks) / len(ranks)


def grade_similarity(item: Item, outcome: Outcome, *, low: float, high: float) -> Graded:
    """Compute the squared error of a cosine; an item with a NaN has no score.

    Args:
        item: pair of texts with its score.
        outcome: cosine of the vectors.
        low: smallest score of the task's items, which counts as 0.
        high: largest score, which counts as 1.
    """
    (cosine,) = outcome.log_likelihoods
    if math.isnan(cosine):
        return Graded(None, "")
    expected = (item.targets[SCORE] - low) / (high - low)
    return Graded((cosine - expected) ** 2, write_numbers({SCORE: cosine}))
