"""Precision, recall and F1 of entities over weighted items.

An entity is a type with the number of its first word and of the word after its last one; the
entities of an item do not overlap one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lora_kit.statistics.bootstrap import Statistic
from lora_kit.statistics.clusters import Floats
from lora_kit.statistics.labels import ClassScore, LabelScores

Span = tuple[str, int, int]
"""Type, first word, and the word after the last one."""
Count = Callable[[Sequence[Span], Sequence[Span]], int]
"""Function that counts the right ones of the predicted entities of an item."""


def equal_entities(predicted: Sequence[Span], true: Sequence[Span]) -> int:
    """Count the predicted entities with the type and both boundaries of a true one."""
    return len(set(predicted) & set(true))


def overlapping_entities(predicted: Sequence[Span], true: Sequence[Span]) -> int:
    """Count pairs of a predicted and a true entity of one type with a word in common.

    Each entity is in one pair at most, and the number of pairs is the largest possible one: of all
    entities that are left, the one that ends first overlaps at most one of the others.
    """
    found = 0
    for name in {span[0] for span in predicted} & {span[0] for span in true}:
        ours, theirs = (
            sorted((start, end) for other, start, end in spans if other == name)
            for spans in (predicted, true)
        )
        while ours and theirs:
            (start, end), (other_start, other_end) = ours[0], theirs[0]
            if max(start, other_start) < min(end, other_end):
                found, ours, theirs = found + 1, ours[1:], theirs[1:]
            elif end <= other_start:
                ours = ours[1:]
            else:
                theirs = theirs[1:]
    return found


def entity_f1(
    predicted: Sequence[Sequence[Span]],
    true: Sequence[Sequence[Span]],
    count: Count = equal_entities,
) -> Statistic:
    """Return F1 of the entities of all items, 2 right / (predicted + true); 1 if there are none.

    Args:
        predicted: (items,), predicted entities.
        true: (items,), true entities.
        count: function that counts the right ones of an item's predicted entities.

    Returns:
        Function from weights, (resamples, items), to values, (resamples,).
    """
    right = np.array([count(*pair) for pair in zip(predicted, true, strict=True)], np.float64)
    made = np.array([len(a) + len(b) for a, b in zip(predicted, true, strict=True)], np.float64)

    def statistic(weights: Floats) -> Floats:
        hits, total = weights @ right, weights @ made
        return np.asarray(np.where(total > 0, 2 * hits / np.maximum(total, 1e-300), 1.0))

    return statistic


def entity_scores(
    predicted: Sequence[Sequence[Span]], true: Sequence[Sequence[Span]]
) -> LabelScores:
    """Compute precision, recall and F1 of each type that an item has, by equal boundaries.

    Args:
        predicted: (items,), predicted entities.
        true: (items,), true entities; at least one item has one.
    """
    scores = []
    for name in sorted({span[0] for spans in true for span in spans}):
        ours, theirs = (
            [[span for span in spans if span[0] == name] for spans in lists]
            for lists in (predicted, true)
        )
        right = sum(map(equal_entities, ours, theirs))
        given, support = sum(map(len, ours)), sum(map(len, theirs))
        precision = right / given if given else None
        scores.append(
            ClassScore(name, precision, right / support, 2 * right / (given + support), support)
        )
    return LabelScores(tuple(scores), float(np.mean([one.f1 for one in scores])))
