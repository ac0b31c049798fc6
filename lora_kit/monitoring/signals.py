"""Signals of a stream: each compares one property of its texts with the reference.

The error is shared equally: each of K signals may alarm with alpha/K (Bonferroni), since the
signals depend on one another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lora_kit.monitoring.reference import ReferenceText
from lora_kit.monitoring.scores import class_score, value_score, word_score
from lora_kit.monitoring.stream_test import TestedWindow, Texts, check_stream
from lora_kit.monitoring.texts import StreamText
from lora_kit.monitoring.windows import Window
from lora_kit.statistics.clusters import Floats

WORDS, LENGTH = "words", "length"


@dataclass(frozen=True)
class Signal:
    """Signal over the windows of a stream.

    Attributes:
        name: name, such as `length`.
        title: property that is compared.
        unit: meaning of the values.
        reference: value of the reference.
        values: value of each window.
        windows: test of each window.
    """

    name: str
    title: str
    unit: str
    reference: float
    values: tuple[float, ...]
    windows: tuple[TestedWindow, ...]

    def alarm(self, limit: float) -> int | None:
        """Return the number of the first window whose evidence reaches a limit, from 1.

        Args:
            limit: log of the evidence, in nats.
        """
        return next((n for n, one in enumerate(self.windows, 1) if one.evidence >= limit), None)

    @property
    def strongest(self) -> float:
        """Largest evidence of all windows, as its log in nats."""
        return max(one.evidence for one in self.windows)


def normalized(text: str) -> str:
    """Return a text without regard to case and white space: such texts count once."""
    return " ".join(text.casefold().split())


def text_signals(
    reference: Sequence[ReferenceText], stream: Sequence[StreamText], windows: Sequence[Window]
) -> list[Signal]:
    """Test the words and the length of texts; needs no model.

    Half of the reference trains the classifier, the other half is compared with the stream. Texts
    of one cluster of the reference are in one half.

    Args:
        reference: texts to compare with.
        stream: texts in the order of their times.
        windows: windows of the stream.
    """
    training, compared = split_reference(reference)
    texts = Texts.draw(_clusters(compared, stream), stream_clusters(stream))
    every = [*(one.text for one in compared), *(one.text for one in stream)]
    words = check_stream(texts, windows, word_score([one.text for one in training], every))
    lengths = np.array([len(text) for text in every], np.float64)
    return [
        Signal(
            WORDS,
            "Words and word pairs",
            "AUC against the reference",
            0.5,
            tuple(one.above for one in words),
            tuple(words),
        ),
        value_signal(
            (LENGTH, "Length", "median, characters"), texts, windows, lengths, statistic=np.median
        ),
    ]


def split_reference(
    reference: Sequence[ReferenceText],
) -> tuple[list[ReferenceText], list[ReferenceText]]:
    """Split a reference into halves, with all texts of a cluster in one of them."""
    clusters = sorted({one.cluster for one in reference})
    random.Random("reference").shuffle(clusters)
    place = {cluster: number for number, cluster in enumerate(clusters)}
    ordered = sorted(reference, key=lambda one: place[one.cluster])
    half = len(ordered) // 2
    while half < len(ordered) - 1 and ordered[half].cluster == ordered[half - 1].cluster:
        half += 1
    return ordered[:half], ordered[half:]


def stream_clusters(stream: Sequence[StreamText]) -> list[str]:
    """Return the cluster of each text: its own, or the text itself without one."""
    return [
        f"cluster/{one.cluster}" if one.cluster else f"text/{normalized(one.text)}"
        for one in stream
    ]


def _clusters(reference: Sequence[ReferenceText], stream: Sequence[StreamText]) -> list[str]:
    """Return the cluster of each text of the reference, by the same rule as in the stream.

    Units have to be alike: clusters of the reference count only where the stream has clusters.
    """
    if stream[0].cluster:
        return [f"reference/{one.cluster}" for one in reference]
    return [f"text/{normalized(one.text)}" for one in reference]


def value_signal(
    named: tuple[str, str, str],
    texts: Texts,
    windows: Sequence[Window],
    values: Floats,
    statistic: Callable[[Floats], object] = np.mean,
) -> Signal:
    """Test a value of each text for a change in either direction.

    Args:
        named: name, title and unit of the signal.
        texts: reference and stream.
        windows: windows of the stream.
        values: (texts,) float64, those of the reference first.
        statistic: function of values that is shown.
    """
    stream = values[texts.reference :]
    return Signal(
        *named,
        _number(statistic(values[: texts.reference])),
        tuple(_number(statistic(stream[one.start : one.end])) for one in windows),
        tuple(check_stream(texts, windows, value_score(values), two_sided=True)),
    )


def class_signal(
    texts: Texts, windows: Sequence[Window], training: Sequence[int], classes: Sequence[int]
) -> Signal:
    """Test predicted classes for classes that have become more frequent.

    Args:
        texts: reference and stream.
        windows: windows of the stream.
        training: classes of the reference's items that are not among `texts`.
        classes: classes of `texts`.
    """
    count = max(*training, *classes) + 1
    known = np.bincount([*training, *classes[: texts.reference]], minlength=count)

    def distance(values: Sequence[int]) -> float:
        """Return the total variation distance from the reference's shares."""
        own = np.bincount(values, minlength=count)
        return float(np.abs(own / own.sum() - known / known.sum()).sum() / 2)

    stream = classes[texts.reference :]
    return Signal(
        "classes",
        "Predicted classes",
        "share of texts whose class would have to be another one",
        0.0,
        tuple(distance(stream[one.start : one.end]) for one in windows),
        tuple(check_stream(texts, windows, class_score(training, classes, count))),
    )


def _number(value: object) -> float:
    return float(value)  # type: ignore[arg-type]


def alarm_limit(alpha: float, signals: int) -> float:
    """Return the log of the evidence at which a signal alarms, in nats.

    Args:
        alpha: largest probability of a false alarm, of all signals and windows together.
        signals: number of signals.
    """
    return math.log(signals / alpha)
