"""Self-training: a linear probe that labels texts, which the next probe is fitted to (Lee 2013)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lora_kit.modeling.out_of_fold import (
    AddedRows,
    OutOfFold,
    fitted_probe,
    grouped_folds,
    out_of_fold,
)

# Fewest labelled rows above a class's threshold: of fewer, the share of right ones says little.
MIN_ROWS = 5


def class_thresholds(found: OutOfFold, labels: NDArray[np.int64], precision: float) -> list[float]:
    """Return the threshold of each class: the lowest that keeps the wanted precision.

    Args:
        found: out-of-fold probabilities of labelled rows.
        labels: (rows,) int64, class of each row.
        precision: wanted share of rows above a threshold whose class is right.

    Returns:
        A probability for each class; infinite where none keeps it with `MIN_ROWS` rows.
    """
    predicted, best = found.probabilities.argmax(axis=1), found.probabilities.max(axis=1)
    thresholds = []
    for number in range(found.probabilities.shape[1]):
        own = np.flatnonzero(found.known & (predicted == number))
        own = own[np.argsort(-best[own], kind="stable")]
        shares = (labels[own] == number).cumsum() / np.arange(1, len(own) + 1)
        enough = np.flatnonzero((shares >= precision) & (np.arange(len(own)) >= MIN_ROWS - 1))
        thresholds.append(float(best[own[enough[-1]]]) if len(enough) else np.inf)
    return thresholds


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """Labelled rows to which a probe is fitted.

    Attributes:
        features: (rows, features) float32.
        labels: (rows,) int64, class of each row.
        groups: (rows,) int64, group of each row that stays in one fold.
        classes: number of classes.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: int

    def predict(
        self,
        features: NDArray[np.float32],
        penalty: float,
        added: AddedRows | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the probabilities of other rows, (rows, classes) float64.

        Args:
            features: (rows, features) float32.
            penalty: inverse regularization strength C.
            added: rows that the probe is fitted to besides the labelled ones.
            rows: labelled rows that it is fitted to; by default all.
        """
        own = np.arange(len(self.labels)) if rows is None else rows
        probe = fitted_probe(self.features[own], self.labels[own], penalty, added)
        found = np.zeros((len(features), self.classes))
        found[:, probe.classes_] = probe.predict_proba(features)
        return found


@dataclass(frozen=True, eq=False)
class Chosen:
    """Texts that get a class.

    Attributes:
        numbers: (chosen,) int64, indices of the texts.
        classes: (chosen,) int64, class of each.
        probabilities: (chosen,) float64, probability of that class.
    """

    numbers: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @classmethod
    def of(cls, probabilities: NDArray[np.float64], thresholds: Sequence[float]) -> Chosen:
        """Choose the texts whose most probable class reaches its threshold."""
        classes, best = probabilities.argmax(axis=1), probabilities.max(axis=1)
        numbers = np.flatnonzero(best >= np.array(thresholds)[classes])
        return cls(numbers, classes[numbers], best[numbers])

    def added(self, features: NDArray[np.float32]) -> AddedRows | None:
        """Return the texts as rows; `None` if there are none."""
        return AddedRows(features[self.numbers], self.classes) if len(self.numbers) else None


@dataclass(frozen=True, eq=False)
class SelfTrained:
    """Result of the rounds.

    Attributes:
        chosen: texts that get a class.
        thresholds: threshold of each class in the last round.
        before: out-of-fold probabilities of the labelled rows without the texts.
        after: the same with the texts, to which probes that had not seen a row gave a class.
    """

    chosen: Chosen
    thresholds: list[float]
    before: OutOfFold
    after: OutOfFold


def self_train(
    rows: LabelledFeatures,
    features: NDArray[np.float32],
    precision: float,
    rounds: int,
    told: Callable[[int, int], None],
) -> SelfTrained | None:
    """Label texts by a probe of labelled rows, several times.

    Each fold labels the texts for itself: classes from a probe that saw a row would tell that row's
    class to the probe that is to be judged on it.

    Args:
        rows: labelled rows.
        features: (texts, features) float32.
        precision: wanted share of right classes above a threshold.
        rounds: times that the texts are labelled, from the second on by a probe that is fitted to
            the labelled texts as well.
        told: function that is called after each round, with its number and that of the texts that
            got a class.

    Returns:
        The labels; `None` if the rows have too few groups for folds.
    """
    before = out_of_fold(rows.features, rows.labels, rows.groups, rows.classes)
    if before is None:
        return None
    judged, folds = before, grouped_folds(rows.labels, rows.groups)
    added: AddedRows | None = None
    of_folds: list[AddedRows | None] = [None] * len(folds)
    for number in range(rounds):
        thresholds = class_thresholds(judged, rows.labels, precision)
        chosen = Chosen.of(rows.predict(features, before.penalty, added), thresholds)
        of_folds = [
            Chosen.of(rows.predict(features, before.penalty, own, rest), thresholds).added(features)
            for (rest, _), own in zip(folds, of_folds, strict=True)
        ]
        added = chosen.added(features)
        judged = judged_with(rows, folds, of_folds, before)
        told(number + 1, len(chosen.numbers))
    return SelfTrained(chosen, thresholds, before, judged)


def judged_with(
    rows: LabelledFeatures,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    added: Sequence[AddedRows | None],
    before: OutOfFold,
) -> OutOfFold:
    """Return the out-of-fold probabilities with rows that are added in each fold.

    Args:
        rows: labelled rows.
        folds: rows that are fitted to and rows that are held out, of each fold.
        added: further rows that the probe of each fold is fitted to.
        before: probabilities without them, whose penalty is used.
    """
    probabilities = np.zeros_like(before.probabilities)
    for (rest, held_out), own in zip(folds, added, strict=True):
        features = rows.features[held_out]
        probabilities[held_out] = rows.predict(features, before.penalty, own, rest)
    return replace(before, probabilities=probabilities)
