"""Scores by which the texts of a stream are compared with a reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_kit.data.audit.shift import count_words
from lora_kit.monitoring.stream_test import Indices, Score
from lora_kit.statistics.clusters import Floats

# Added to each count of a word, so that new words have a finite ratio.
SMOOTHING = 0.1


def word_score(training: Sequence[str], texts: Sequence[str]) -> Score:
    """Return the score of a classifier of words and word pairs: texts of the bag or of training.

    Naive Bayes with multinomial counts (McCallum & Nigam 1998, AAAI workshop on learning for text
    categorization), learned anew from each bag. All texts of the bag are of the same class, those
    of the reference too, so that the classifier does not know which ones are new. Texts of another
    domain are what the bag has and the training texts do not.

    The audit's logistic regression on the same counts, learned in the same way, gives much less
    evidence (RESULTS.md, Monitor).

    Args:
        training: texts of the reference that are in no bag.
        texts: texts of the reference that are in every bag, and behind them those of the stream.

    Returns:
        Score: log-likelihood ratio of a text, divided by the square root of its length in words,
        which long texts would otherwise exceed short ones by.
    """
    known = np.asarray(count_words(training).sum(axis=0), dtype=np.float64).ravel() + SMOOTHING
    known = np.log(known / known.sum())
    counts = count_words(texts)
    lengths = np.sqrt(np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1.0))

    def score(units: Indices) -> Floats:
        own = counts[units]
        found = np.asarray(own.sum(axis=0), dtype=np.float64).ravel() + SMOOTHING
        ratios: Floats = own @ (np.log(found / found.sum()) - known) / lengths[units]
        return ratios

    return score


def value_score(values: Floats) -> Score:
    """Return the score that is a known value of each text, such as its length or its loss.

    Args:
        values: (texts,) float64, those of the reference first.
    """
    return lambda units: values[units]


def class_score(training: Sequence[int], classes: Sequence[int], count: int) -> Score:
    """Return the score of a predicted class: how much more frequent it is in the bag.

    Args:
        training: classes of the reference's items that are in no bag.
        classes: classes of the other items, and behind them those of the stream.
        count: number of classes.

    Returns:
        Score: log of the ratio of the shares, each count increased by 1.
    """
    known = np.log(np.bincount(training, minlength=count) + 1.0)
    numbers = np.asarray(classes, np.int64)

    def score(units: Indices) -> Floats:
        own = numbers[units]
        ratios: Floats = np.log(np.bincount(own, minlength=count) + 1.0) - known
        return ratios[own]

    return score
