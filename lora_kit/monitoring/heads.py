"""Heads that are monitored: signals of their answers to texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from scipy.special import expit

from lora_kit.backbone.heads import HeadOutputs
from lora_kit.data.entities import FIRST, OUTSIDE, read_entities
from lora_kit.data.scored import read_numbers
from lora_kit.evaluation.ledger import Entry
from lora_kit.evaluation.row_tasks import number_fields
from lora_kit.monitoring.signals import Signal, class_signal, value_signal
from lora_kit.monitoring.stream_test import Texts
from lora_kit.monitoring.windows import Window
from lora_kit.recipe.objective import HeadObjective
from lora_kit.statistics.clusters import Floats


@dataclass(frozen=True)
class Answers:
    """Answers of an adapter to judged items and to the texts of a stream.

    Attributes:
        recorded: answers to the items, which the adapter was not trained on.
        measured: answers to the texts, in their order.
        clusters: cluster of each text.
        windows: windows of the stream.
    """

    recorded: Sequence[Entry]
    measured: Sequence[Entry]
    clusters: Sequence[str]
    windows: Sequence[Window]

    @property
    def every(self) -> tuple[Entry, ...]:
        """Answers to the items, then to the texts."""
        return (*self.recorded, *self.measured)

    def values(self, named: tuple[str, str, str], values: Floats) -> Signal:
        """Return the signal of a value of each answer of `every`."""
        texts = Texts.draw(_clusters(self.recorded), self.clusters)
        return value_signal(named, texts, self.windows, values)

    def classes(self, classes: Sequence[int]) -> Signal:
        """Return the signal of a class of each answer of `every`."""
        count = len(self.recorded)
        # Every second item is what the shares of the classes are known from.
        known, compared = classes[:count:2], [*classes[1:count:2], *classes[count:]]
        texts = Texts.draw(_clusters(self.recorded[1::2]), self.clusters)
        return class_signal(texts, self.windows, known, compared)


class MonitoredHead(Protocol):
    """Head whose answers to texts are compared with those to the judged items."""

    @property
    def objective(self) -> HeadObjective:
        """Objective that trains such a head."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        ...

    @property
    def answers(self) -> str:
        """Answers, in words, for notes."""
        ...

    def item(self, place: int, text: str) -> Mapping[str, Any]:
        """Return the fields of a text without a target: any will do, its score is not read.

        Args:
            place: number of the text.
            text: the text.
        """
        ...

    def signals(self, answers: Answers) -> list[Signal]:
        """Return the signals of the answers."""
        ...


@dataclass(frozen=True)
class ClassHead:
    """Head of classes: their shares, and its confidence in them."""

    names: tuple[str, ...]
    objective: ClassVar[HeadObjective] = "classification"
    answers: ClassVar[str] = "predicted classes"

    def item(self, place: int, text: str) -> Mapping[str, Any]:
        """See `MonitoredHead`."""
        del place
        return {"text": text, "label": self.names[0]}

    def signals(self, answers: Answers) -> list[Signal]:
        """See `MonitoredHead`."""
        number = {name: place for place, name in enumerate(self.names)}
        named = "confidence", "Confidence in the predicted class", "mean probability"
        sure = np.exp([max(one.log_likelihoods, default=0.0) for one in answers.every])
        classes = [number.get(one.output, 0) for one in answers.every]
        return [answers.classes(classes), answers.values(named, sure)]


@dataclass(frozen=True)
class NumberHead:
    """Head of numbers: each of them."""

    names: tuple[str, ...]
    objective: ClassVar[HeadObjective] = "regression"
    answers: ClassVar[str] = "predicted numbers"

    def item(self, place: int, text: str) -> Mapping[str, Any]:
        """See `MonitoredHead`; equal numbers would have no variance to divide errors by."""
        return {"text": text} | number_fields(dict.fromkeys(self.names, float(place)))

    def signals(self, answers: Answers) -> list[Signal]:
        """See `MonitoredHead`."""
        read = [read_numbers(one.output) if one.output else {} for one in answers.every]
        return [
            answers.values(
                (f"number {name}", f"Predicted {name}", "mean"),
                np.array([one.get(name, np.inf) for one in read]),
            )
            for name in self.names
        ]


@dataclass(frozen=True)
class LabelHead:
    """Head of any number of labels: the most likely one, and its confidence in all decisions."""

    names: tuple[str, ...]
    objective: ClassVar[HeadObjective] = "multi-label"
    answers: ClassVar[str] = "predicted labels"

    def item(self, place: int, text: str) -> Mapping[str, Any]:
        """See `MonitoredHead`; each label in turn, since some scores need texts with it."""
        return {"text": text, "labels": [self.names[place % len(self.names)]]}

    def signals(self, answers: Answers) -> list[Signal]:
        """See `MonitoredHead`."""
        logits = np.array([one.log_likelihoods for one in answers.every])
        named = (
            "confidence",
            "Confidence in the labels",
            "mean probability of the likelier decision",
        )
        return [
            answers.classes(logits.argmax(axis=1).tolist()),
            answers.values(named, expit(np.abs(logits)).mean(axis=1)),
        ]


@dataclass(frozen=True)
class TagHead:
    """Head of words: types and share of entities, and its confidence in the tags."""

    names: tuple[str, ...]
    objective: ClassVar[HeadObjective] = "token-classification"
    answers: ClassVar[str] = "predicted entities"

    def item(self, place: int, text: str) -> Mapping[str, Any]:
        """See `MonitoredHead`; words are what white space separates."""
        del place
        words = text.split()
        first = next(name for name in self.names if name.startswith(FIRST))
        return {"tokens": words, "tags": [first, *[OUTSIDE] * (len(words) - 1)]}

    def signals(self, answers: Answers) -> list[Signal]:
        """See `MonitoredHead`."""
        found = [read_entities(one.output) if one.output else () for one in answers.every]
        types = sorted({name.removeprefix(FIRST) for name in self.names if name.startswith(FIRST)})
        # The type of most entities; 0 for a text without one.
        most = [
            1 + types.index(Counter(one.name for one in of_text).most_common(1)[0][0])
            if of_text
            else 0
            for of_text in found
        ]
        texts = zip(found, answers.every, strict=True)
        covered = [
            sum(one.end - one.start for one in of_text) / max(len(self._of_words(entry)), 1)
            for of_text, entry in texts
        ]
        return [
            answers.classes(most),
            answers.values(
                ("entities", "Words of entities", "mean share of a text's words"),
                np.array(covered),
            ),
            answers.values(
                ("confidence", "Confidence in the tags", "mean probability of the predicted tag"),
                np.array([self._confidence(one) for one in answers.every]),
            ),
        ]

    def _of_words(self, entry: Entry) -> Floats:
        """Return the log-probabilities of the tags, (words, tags) float64."""
        return np.array(entry.log_likelihoods).reshape(-1, len(self.names))

    def _confidence(self, entry: Entry) -> float:
        of_words = self._of_words(entry)
        # A text that was cut before its first word says nothing.
        return float(np.exp(of_words.max(axis=1)).mean()) if len(of_words) else np.inf


HEADS = {one.objective: one for one in (ClassHead, NumberHead, LabelHead, TagHead)}


def monitored_head(outputs: HeadOutputs | None) -> MonitoredHead | None:
    """Return how a head of `HEADS` is monitored; `None` for a model that gives texts a loss.

    Args:
        outputs: outputs of the head; `None` for a language model.
    """
    return HEADS[outputs.kind](outputs.names) if outputs and outputs.kind in HEADS else None


def _clusters(entries: Sequence[Entry]) -> list[str]:
    return [f"{one.suite}/{one.cluster}" for one in entries]
