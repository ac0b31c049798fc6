"""Pseudo-labels of texts without a class, by a linear probe of the base (Lee 2013)."""

from __future__ import annotations

from collections.abc import Mapping
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
from lora_kit.modeling.features import mean_features
from lora_kit.modeling.out_of_fold import AddedRows
from lora_kit.modeling.self_training import LabelledFeatures, SelfTrained, self_train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError
from lora_kit.training.head_rows.probe_texts import (
    row_groups,
    text_features,
    text_of,
    without_folds,
)

FIELD = "data.unlabeled"
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
            DataError: if the value is not such an output.
        """
        try:
            labels = tuple((str(a), str(b), float(c)) for a, b, c in value["labels"])
            return cls(**{**value, "labels": labels, "check": Check(**value["check"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{FIELD}: the run's generated_rows.json holds no pseudo-labels of this version "
                f"(got {str(value)!r:.60}). Fix: restore the file from the run"
            ) from error


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
    assert spec is not None  # and only with the section
    texts = _new_texts(open_unlabeled(recipe), rows)
    data = prepare(rows, backbone.tokenizer, recipe.data, 0, recipe.training.objective, outputs)
    labelled = LabelledFeatures(
        mean_features(backbone, data),
        np.array(class_indices(data), np.int64),
        row_groups(rows, recipe.data.audit.label_error_folds),
        len(outputs.names),
    )
    features = text_features(backbone, [text_of(row) for row in texts], recipe.data.max_length)

    def told(number: int, count: int) -> None:
        place = f"{FIELD}: round {number} of {spec.rounds}"
        say(f"{place}: {count:,} of {len(features):,} texts get a class")

    found = self_train(labelled, features, spec.precision, spec.rounds, told)
    if found is None:
        fix = "add rows, or set data.audit.label_error_folds=rows"
        raise without_folds(FIELD, len(labelled.labels), labelled.groups, fix)
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
        _check(recipe, backbone, labelled, found, chosen.added(features)),
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


def _check(
    recipe: Recipe,
    backbone: Backbone,
    labelled: LabelledFeatures,
    found: SelfTrained,
    added: AddedRows | None,
) -> Check:
    """Compare the probe without and with the texts on rows that it never saw."""
    held_out = validation_rows(recipe.data, recipe.seed, recipe.training.objective)
    if not len(held_out):
        hits = [
            one.probabilities.argmax(axis=1) == labelled.labels
            for one in (found.before, found.after)
        ]
        return Check.of(*hits)
    assert backbone.head is not None  # only a classification has pseudo-labels
    data = prepare(held_out, backbone.tokenizer, recipe.data, outputs=backbone.head.outputs)
    features, labels = mean_features(backbone, data), np.array(class_indices(data))
    guesses = [
        labelled.predict(features, found.before.penalty, rows).argmax(axis=1)
        for rows in (None, added)
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
