"""Whether training rows are of the same kind as others: a two-sample test by a classifier.

Lopez-Paz & Oquab 2017 (arXiv:1610.06545): where the two are alike, no classifier tells them apart.
Ours is a logistic regression on TF-IDF of words and pairs of words, cross-validated, with rows of
one cluster in one part. Theirs reports accuracy; the area under the ROC curve is the same for sets
of unlike sizes. Its interval is that of Hanley & McNeil 1982, its p value that of the Mann-Whitney
test; both take the rows to be independent, so many rows of few clusters look surer than they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from lora_kit.data.audit.findings import Shift
from lora_kit.data.audit.item import VALIDATION, AuditedItem, held_out_items
from lora_kit.data.rows import Row

MOST = 2000
"""Rows of each kind that are compared."""
FEWEST = 10
"""Rows of each kind that it takes."""
_PARTS = 5
# Of a document, its beginning: it tells what kind it is.
_CHARACTERS = 20_000


@dataclass
class Sample:
    """Up to 2,000 training rows, chosen before they are seen.

    Attributes:
        chosen: their numbers.
        items: the rows, as they come, as a prompt and an answer.
    """

    chosen: frozenset[int]
    items: list[AuditedItem] = field(default_factory=list)

    @classmethod
    def of(cls, rows: int) -> Sample:
        """The same ones of so many rows each time."""
        return cls(frozenset(_some(rows)))

    def look(self, block: Sequence[Row], first_row: int) -> None:
        """Keep the chosen ones of some rows, of which the first has this number."""
        self.items += held_out_items(
            row for number, row in enumerate(block, start=first_row) if number in self.chosen
        )


def _some(count: int) -> list[int]:
    return sorted(random.Random("shift").sample(range(count), min(count, MOST)))


def shifts(training: Sample, held_out: Sequence[Row], items: Sequence[AuditedItem]) -> list[Shift]:
    """Compare training rows with the held-out ones and with the items of each gain suite.

    A suite of too few items, or of items that all are of one cluster, is left out.
    """
    others = {VALIDATION: held_out_items(held_out[n] for n in _some(len(held_out)))}
    for item in items:
        if item.gain:
            others.setdefault(item.suite, []).append(item)
    found = [
        _shift(name, training.items, [some[n] for n in _some(len(some))])
        for name, some in others.items()
    ]
    return [one for one in found if one is not None]


def _shift(name: str, rows: Sequence[AuditedItem], others: Sequence[AuditedItem]) -> Shift | None:
    # Items without an answer to show are compared by what is asked alone.
    answered = any(item.answers for item in others)
    texts = [_text(item, answered) for item in [*rows, *others]]
    groups = [item.cluster or item.id for item in [*rows, *others]]
    labels = np.repeat([0, 1], [len(rows), len(others)])
    parts = min(_PARTS, len(set(groups[: len(rows)])), len(set(groups[len(rows) :])))
    if min(len(rows), len(others)) < FEWEST or parts < 2:
        return None
    scores = _scores(texts, labels, groups, parts)
    seen = ~np.isnan(scores)
    if len(set(labels[seen])) < 2:
        return None
    return area(name, scores[seen & (labels == 0)], scores[seen & (labels == 1)])


def _text(item: AuditedItem, answered: bool) -> str:
    answer = item.answers[0] if item.answers and answered else ""
    asked = item.prompt if item.prompt or answered else item.answers[0]
    return f"{asked}\n{answer}"[:_CHARACTERS]


def _scores(
    texts: Sequence[str], labels: NDArray[np.int64], groups: Sequence[str], parts: int
) -> NDArray[np.float64]:
    """Of each text the score of a classifier that was not trained on its part, or NaN."""
    vectorizer = HashingVectorizer(
        ngram_range=(1, 2),
        token_pattern=r"\w+",
        n_features=2**16,
        alternate_sign=False,
        norm=None,
    )
    features = TfidfTransformer(sublinear_tf=True).fit_transform(vectorizer.transform(texts))
    scores = np.full(len(texts), np.nan)
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=0)
    for trained, tested in folds.split(features, labels, groups):
        if len(set(labels[trained])) < 2:
            continue
        classifier = LogisticRegression(class_weight="balanced", max_iter=200)
        classifier.fit(features[trained], labels[trained])
        scores[tested] = classifier.decision_function(features[tested])
    return scores


def area(name: str, rows: NDArray[np.float64], others: NDArray[np.float64]) -> Shift:
    """The area under the ROC curve, with its interval.

    Args:
        name: of the others.
        rows: (rows,) float64, scores of training rows.
        others: (others,) float64, scores of the others, larger where the classifier is right.
    """
    test = mannwhitneyu(others, rows, alternative="greater")
    count = len(rows) * len(others)
    auc = float(test.statistic) / count
    # Hanley & McNeil 1982, equation 2.
    twice_other, twice_row = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc)
        + (len(others) - 1) * (twice_other - auc**2)
        + (len(rows) - 1) * (twice_row - auc**2)
    ) / count
    half = 1.96 * math.sqrt(max(variance, 0.0))
    return Shift(
        other=name,
        rows=len(rows),
        others=len(others),
        auc=auc,
        low=max(auc - half, 0.0),
        high=min(auc + half, 1.0),
        p_value=float(test.pvalue),
    )
