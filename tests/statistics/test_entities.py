"""Entity-level scores against seqeval and against the largest matching of a graph."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from seqeval.metrics import classification_report, f1_score
from seqeval.scheme import IOB2

from lora_kit.data.entities import Entity, entities_of, tags_of
from lora_kit.statistics.entities import (
    entity_f1,
    entity_scores,
    equal_entities,
    overlapping_entities,
)

RANDOM = random.Random(0)
TAGS = ("O", "B-a", "I-a", "B-b", "I-b")
# Predicted tags need not be valid: an I may continue nothing.
GIVEN = [[RANDOM.choice(TAGS) for _ in range(RANDOM.randint(1, 12))] for _ in range(200)]
TRUE = [list(tags_of(entities_of([*map(RANDOM.choice, [TAGS] * len(one))]), len(one)))
        for one in GIVEN]  # fmt: skip
PREDICTED, RIGHT = ([entities_of(tags) for tags in texts] for texts in (GIVEN, TRUE))
COUNTS = np.random.default_rng(0).integers(0, 3, size=200)


def test_strict_f1_is_that_of_seqeval_also_where_items_are_drawn_several_times() -> None:
    weights = np.stack([np.ones(200), COUNTS.astype(float)])
    drawn = (np.arange(200), np.repeat(np.arange(200), COUNTS))
    for found, rows in zip(entity_f1(PREDICTED, RIGHT)(weights), drawn, strict=True):
        expected = f1_score(
            [TRUE[n] for n in rows], [GIVEN[n] for n in rows], mode="strict", scheme=IOB2
        )
        assert found == pytest.approx(expected)


def test_each_type_has_the_scores_of_seqeval() -> None:
    report = classification_report(TRUE, GIVEN, mode="strict", scheme=IOB2, output_dict=True)
    scores = entity_scores(PREDICTED, RIGHT)
    assert [one.label for one in scores.classes] == ["a", "b"]
    for one in scores.classes:
        expected = report[one.label]
        assert one.precision == pytest.approx(expected["precision"])
        assert one.recall == pytest.approx(expected["recall"])
        assert one.f1 == pytest.approx(expected["f1-score"])
        assert one.support == expected["support"]
    assert scores.macro_f1 == pytest.approx(report["macro avg"]["f1-score"])


def test_a_type_that_is_never_predicted_has_no_precision() -> None:
    (one,) = entity_scores([()], [(Entity("a", 0, 1),)]).classes
    assert (one.precision, one.recall, one.f1) == (None, 0.0, 0.0)


def _largest_matching(predicted: Sequence[Entity], true: Sequence[Entity]) -> int:
    if not predicted or not true:
        return 0
    overlaps = [
        [one.name == other.name and one.start < other.end and other.start < one.end
         for other in true]
        for one in predicted
    ]  # fmt: skip
    return int((maximum_bipartite_matching(csr_array(overlaps)) >= 0).sum())


def test_relaxed_f1_counts_the_largest_number_of_pairs_that_overlap() -> None:
    counts = [overlapping_entities(*pair) for pair in zip(PREDICTED, RIGHT, strict=True)]
    assert counts == [_largest_matching(*pair) for pair in zip(PREDICTED, RIGHT, strict=True)]
    assert sum(counts) > sum(map(equal_entities, PREDICTED, RIGHT))
    # One long entity over two short ones is one pair.
    long, short = [Entity("a", 0, 4)], [Entity("a", 0, 1), Entity("a", 2, 3)]
    assert overlapping_entities(long, short) == overlapping_entities(short, long) == 1
    assert overlapping_entities(long, [Entity("b", 0, 4), Entity("a", 4, 5)]) == 0


def test_no_entities_at_all_are_no_error() -> None:
    assert entity_f1([()], [()])(np.ones((1, 1))).tolist() == [1.0]
