"""Pseudo-labels of texts without a class, by a linear probe of the base (Lee 2013)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from lora_kit.backbone.load import Backbone
from lora_kit.data.dataset import prepare, validation_rows
from lora_kit.data.formats import parse_row
from lora_kit.data.head_targets import class_indices
from lora_kit.data.row_sets import Rows, concatenate_rows
from lora_kit.data.rows import Row
from lora_kit.data.sources import open_source
from lora_kit.modeling.out_of_fold import (
    AddedRows,
    OutOfFold,
    fitted_probe,
    grouped_folds,
    out_of_fold,
)
from lora_kit.recipe.data import UnlabeledSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError
from lora_kit.training.head_rows.probe_features import (
    probe_features,
    row_groups,
    text_features,
    text_of,
)

FIELD = "data.unlabeled"
# Fewest labelled rows above a class's threshold: of fewer, the share of right ones says little.
MIN_ROWS = 5
# One-sided level at which pseudo-labels are said to hurt.
LEVEL = 0.05


@dataclass(frozen=True)
class Check:
    """Accuracy of the probe without and with pseudo-labelled texts, on rows that it never saw.

    Attributes:
        rows: held-out rows: those of `data.validation`, else labelled rows out of fold.
        without: share of right classes without the texts.
        with_them: share of right classes with them.
        p: p-value of the exact sign test of no harm, one-sided, over the rows that changed.
    """

    rows: int
    without: float
    with_them: float
    p: float

    @classmethod
    def of(cls, without: NDArray[np.bool_], with_them: NDArray[np.bool_]) -> Check:
        """Compare hits, (rows,) bool, of the same rows."""
        lost, won = int((without & ~with_them).sum()), int((with_them & ~without).sum())
        p = binomtest(lost, lost + won, 0.5, "greater").pvalue if lost + won else 1.0
        before, after = round(float(without.mean()), 4), round(float(with_them.mean()), 4)
        return cls(len(without), before, after, round(float(p), 6))


@dataclass(frozen=True)
class PseudoLabels:
    """Texts that get a class.

    Attributes:
        texts: number of texts, without those that are training rows or stand twice.
        thresholds: probability from which on a text gets a class, by class; `None` for a class
            that gets no texts.
        labels: origin, class and probability of each text that gets one.
        check: gain or loss of the probe by them.
    """

    texts: int
    thresholds: Mapping[str, float | None]
    labels: tuple[tuple[str, str, float], ...]
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """Return the labels as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PseudoLabels:
        """Restore labels from the output of `to_dict`.

        Raises:
            KeyError: if the value is not such an output.
            TypeError: likewise.
        """
        labels = tuple((str(a), str(b), float(c)) for a, b, c in value["labels"])
        return cls(**{**value, "labels": labels, "check": Check(**value["check"])})


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


def open_unlabeled(recipe: Recipe) -> Rows:
    """Open the texts of `data.unlabeled`.

    Raises:
        DataError: if a source cannot be read.
    """
    spec = recipe.data.unlabeled
    assert spec is not None  # asked for only with the section
    return concatenate_rows(
        [
            open_source(source, recipe.seed, f"{FIELD}.texts.{number}.source")
            for number, source in enumerate(spec.texts)
        ]
    )


def find_pseudo_labels(recipe: Recipe, rows: Rows, backbone: Backbone) -> PseudoLabels:
    """Label the texts of `data.unlabeled` with a probe of the base.

    Args:
        recipe: recipe of a classification.
        rows: labelled rows.
        backbone: the base, without an adapter or with a disabled one.

    Raises:
        DataError: if the rows give no folds, or no text is left to be labelled.
    """
    assert backbone.head is not None  # only a classification has pseudo-labels
    outputs, spec = backbone.head.outputs, recipe.data.unlabeled
    assert spec is not None
    texts = _new_texts(open_unlabeled(recipe), rows)
    data = prepare(rows, backbone.tokenizer, recipe.data, 0, recipe.training.objective, outputs)
    probe = _Probe(
        probe_features(backbone, data),
        np.array(class_indices(data), np.int64),
        row_groups(rows, recipe.data.audit.label_error_folds),
        len(outputs.names),
    )
    features = text_features(backbone, [text_of(row) for row in texts], recipe.data.max_length)
    found = _label(probe, features, spec)
    chosen = found.chosen
    return PseudoLabels(
        len(texts),
        {
            name: round(one, 6) if np.isfinite(one) else None
            for name, one in zip(outputs.names, found.thresholds, strict=True)
        },
        tuple(
            (texts[number].origin, outputs.names[label], round(probability, 6))
            for number, label, probability in zip(
                chosen.numbers.tolist(),
                chosen.classes.tolist(),
                chosen.probabilities.tolist(),
                strict=True,
            )
        ),
        _check(recipe, backbone, probe, found, chosen.added(features)),
    )


def _new_texts(texts: Rows, rows: Rows) -> list[Row]:
    """Return the texts that are not training rows, each once, regardless of case and space."""
    seen = {_folded(text_of(row)) for row in rows}
    new = []
    for row in texts:
        folded = _folded(text_of(row))
        if folded and folded not in seen:
            seen.add(folded)
            new.append(row)
    if not new:
        raise DataError(
            f"{FIELD}.texts: no text to label (got {len(texts):,} texts, all of them empty or "
            "among the training rows). Fix: name other texts, or remove data.unlabeled"
        )
    return new


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, eq=False)
class _Probe:
    """Labelled rows of the probe.

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

    def judged(self) -> OutOfFold:
        """Return the probabilities of the labelled rows, out of fold.

        Raises:
            DataError: if the rows give no folds.
        """
        found = out_of_fold(self.features, self.labels, self.groups, self.classes)
        if found is None:
            raise DataError(
                f"{FIELD}: the labelled rows cannot be divided into folds that have two classes "
                f"each (got {len(self.labels):,} rows in {len(np.unique(self.groups)):,} groups). "
                "Fix: add rows, or set data.audit.label_error_folds=rows"
            )
        return found

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
class _Chosen:
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
    def of(cls, probabilities: NDArray[np.float64], thresholds: Sequence[float]) -> _Chosen:
        """Choose the texts whose most probable class reaches its threshold."""
        classes, best = probabilities.argmax(axis=1), probabilities.max(axis=1)
        numbers = np.flatnonzero(best >= np.array(thresholds)[classes])
        return cls(numbers, classes[numbers], best[numbers])

    def added(self, features: NDArray[np.float32]) -> AddedRows | None:
        """Return the texts as rows; `None` if there are none."""
        return AddedRows(features[self.numbers], self.classes) if len(self.numbers) else None


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Result of the rounds.

    Attributes:
        chosen: texts that get a class.
        thresholds: threshold of each class in the last round.
        before: out-of-fold probabilities of the labelled rows without the texts.
        after: the same with the texts, to which probes that had not seen a row gave a class.
    """

    chosen: _Chosen
    thresholds: list[float]
    before: OutOfFold
    after: OutOfFold


def _label(probe: _Probe, features: NDArray[np.float32], spec: UnlabeledSpec) -> _Labelled:
    """Label the texts, `rounds` times.

    Each fold labels the texts for itself: classes from a probe that saw a row would tell that row's
    class to the probe that is to be judged on it.
    """
    before = judged = probe.judged()
    folds = grouped_folds(probe.labels, probe.groups)
    added: AddedRows | None = None
    of_folds: list[AddedRows | None] = [None] * len(folds)
    for number in range(spec.rounds):
        thresholds = class_thresholds(judged, probe.labels, spec.precision)
        chosen = _Chosen.of(probe.predict(features, before.penalty, added), thresholds)
        of_folds = [
            _Chosen.of(probe.predict(features, before.penalty, own, rest), thresholds).added(
                features
            )
            for (rest, _), own in zip(folds, of_folds, strict=True)
        ]
        added = chosen.added(features)
        judged = _judged_with(probe, folds, of_folds, before)
        say(
            f"{FIELD}: round {number + 1} of {spec.rounds}: {len(chosen.numbers):,} of "
            f"{len(features):,} texts get a class"
        )
    return _Labelled(chosen, thresholds, before, judged)


def _judged_with(
    probe: _Probe,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    added: Sequence[AddedRows | None],
    before: OutOfFold,
) -> OutOfFold:
    probabilities = np.zeros_like(before.probabilities)
    for (rest, held_out), own in zip(folds, added, strict=True):
        features = probe.features[held_out]
        probabilities[held_out] = probe.predict(features, before.penalty, own, rest)
    return replace(before, probabilities=probabilities)


def _check(
    recipe: Recipe, backbone: Backbone, probe: _Probe, found: _Labelled, added: AddedRows | None
) -> Check:
    """Compare the probe without and with the texts on rows that it never saw."""
    held_out = validation_rows(recipe.data, recipe.seed, recipe.training.objective)
    if not len(held_out):
        hits = [
            one.probabilities.argmax(axis=1) == probe.labels for one in (found.before, found.after)
        ]
        return Check.of(*hits)
    assert backbone.head is not None  # only a classification has pseudo-labels
    data = prepare(held_out, backbone.tokenizer, recipe.data, outputs=backbone.head.outputs)
    features, labels = probe_features(backbone, data), np.array(class_indices(data))
    guesses = [
        probe.predict(features, found.before.penalty, rows).argmax(axis=1) for rows in (None, added)
    ]
    return Check.of(*(one == labels for one in guesses))


def refuse_harm(found: PseudoLabels) -> None:
    """Refuse pseudo-labels with which the probe is worse, and warn of those that do not help.

    Raises:
        DataError: if the probe is significantly worse with them, or no text got a class.
    """
    check = found.check
    scores = f"{check.without:.1%} right without them, {check.with_them:.1%} with them"
    if not found.labels:
        raise DataError(
            f"{FIELD}.precision: no class reaches it on labelled rows, so that no text gets one "
            f"(got {found.texts:,} texts). Fix: lower it, or remove data.unlabeled"
        )
    if check.p < LEVEL:
        raise DataError(
            f"{FIELD}: pseudo-labels hurt on {check.rows:,} held-out rows (got {scores}, "
            f"p {check.p:.2g}). Fix: raise data.unlabeled.precision, or remove data.unlabeled"
        )
    verdict = "no better" if check.with_them <= check.without else "better"
    say(
        f"{FIELD}: {len(found.labels):,} of {found.texts:,} texts are trained on; a probe is "
        f"{verdict} with them on {check.rows:,} held-out rows ({scores}). The arm plain shows what "
        "they do to the adapter"
    )


def pseudo_rows(recipe: Recipe, found: PseudoLabels) -> Rows:
    """Return the labelled texts as rows.

    Args:
        recipe: the recipe.
        found: labels of its texts.

    Raises:
        DataError: if a text is gone.
    """
    texts = {row.origin: row for row in open_unlabeled(recipe)}
    rows = []
    for origin, label, _ in found.labels:
        if origin not in texts:
            raise DataError(
                f"{FIELD}.texts: a text that was trained on is gone (got no {origin}). Fix: "
                "restore the texts"
            )
        row = parse_row({"text": text_of(texts[origin]), "label": label}, origin)
        rows.append(replace(row, cluster=texts[origin].cluster))
    return Rows.of("unlabeled", rows)
