"""Test of a stream's windows against a reference, by one score of its texts.

Texts of one cluster count once: of all that are in the bag, the one with the least random priority
stands for the cluster. Its place in time is then as random as that of any other text, so that the
test stays exact where texts are drawn independently and some are more frequent than others. Had the
first text of each cluster counted, those that are frequent would all be in the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_kit.monitoring.windows import Window
from lora_kit.statistics.clusters import Floats
from lora_kit.statistics.exchangeability import (
    StreamEvidence,
    log_evidence,
    two_sided_log_evidence,
)

Indices = NDArray[np.int64]
# Scores of some texts, all of one bag; larger for unusual ones. They may not depend on the order.
Score = Callable[[Indices], Floats]


@dataclass(frozen=True)
class Texts:
    """Texts of a reference and behind them those of a stream.

    Attributes:
        reference: number of texts of the reference.
        clusters: (texts,) int64, number of each text's cluster.
        priorities: (texts,) float64, random; of a cluster, the text with the least one counts.
        ties: (texts,) float64, random; order of texts with the same score.
    """

    reference: int
    clusters: Indices
    priorities: Floats
    ties: Floats

    @classmethod
    def draw(cls, reference: Sequence[str], stream: Sequence[str], seed: int = 0) -> Texts:
        """Draw priorities, the same for a stream that has grown since, and number the clusters.

        Args:
            reference: cluster of each text of the reference.
            stream: cluster of each text of the stream.
            seed: seed of the random order.
        """
        numbers: dict[str, int] = {}
        clusters = [numbers.setdefault(one, len(numbers)) for one in (*reference, *stream)]
        draws = [
            np.random.default_rng([seed, part]).random((len(texts), 2))
            for part, texts in enumerate((reference, stream))
        ]
        both = np.concatenate(draws)
        return cls(len(reference), np.array(clusters, np.int64), both[:, 0], both[:, 1])

    def representatives(self, bag: Indices) -> Indices:
        """Return the text of each cluster in a bag that counts, in ascending order."""
        ordered = bag[np.argsort(self.priorities[bag], kind="stable")]
        _, first = np.unique(self.clusters[ordered], return_index=True)
        return np.sort(ordered[first])


@dataclass(frozen=True)
class TestedWindow:
    """Test of a window by one score.

    Attributes:
        evidence: log of the evidence for a change up to here, in nats.
        log_e: log of the window's own e-value, in nats.
        above: probability that a text of the window is more unusual than one of the reference;
            0.5 without a change.
        units: texts of the window that count.
        foreign: (units,) texts of the window that count, most unusual first, as indices into the
            stream.
    """

    evidence: float
    log_e: float
    above: float
    units: int
    foreign: tuple[int, ...]


def check_stream(
    texts: Texts, windows: Sequence[Window], score: Score, two_sided: bool = False
) -> list[TestedWindow]:
    """Test the windows of a stream one after the other.

    Args:
        texts: reference and stream.
        windows: windows of the stream.
        score: score of the texts of a bag, which is learned anew for each window.
        two_sided: if true, both small and large scores are unusual.
    """
    stream, tested = StreamEvidence(), []
    evidence_of = two_sided_log_evidence if two_sided else log_evidence
    bag = np.arange(0)
    for window in windows:
        if stream.begins_block:
            bag = np.arange(texts.reference)
        newest = texts.reference + window.start
        bag = np.concatenate([bag, np.arange(newest, texts.reference + window.end)])
        units = texts.representatives(bag)
        scores = score(units)
        places = np.empty(len(units), np.int64)
        places[np.lexsort((texts.ties[units], -scores))] = np.arange(len(units))
        own = units >= newest
        log_e = evidence_of(places[own], len(units))
        foreign = units[own][np.argsort(places[own])] - texts.reference
        tested.append(
            TestedWindow(
                stream.add(log_e),
                log_e,
                _above(places[own], places[units < texts.reference]),
                int(own.sum()),
                tuple(foreign.tolist()),
            )
        )
    return tested


def _above(own: Indices, others: Indices) -> float:
    """Return the share of pairs in which the text of the window has the earlier place."""
    if not len(own) or not len(others):
        return 0.5
    return float((len(others) - np.searchsorted(np.sort(others), own)).mean() / len(others))
