"""Whether training rows are of the same kind as others: a two-sample test by a classifier.

Lopez-Paz & Oquab 2017 (arXiv:1610.06545): where the two are alike, no classifier tells them apart.
Ours is a logistic regression on TF-IDF of words and pairs of words, cross-validated, with rows of
one cluster in one part. Theirs reports accuracy; the area under the ROC curve is the same for sets
of unlike sizes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from lora_kit.data.audit.findings import Shift
from lora_kit.data.audit.item import VALIDATION, AuditedItem, held_out_items
from lora_kit.data.rows import Row

Flags = NDArray[np.bool_]

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


@dataclass(frozen=True)
class Part:
    """Rows that one classifier was not trained on.

    Attributes:
        scores: (rows,) float64, larger where a row is taken for one of the others.
        labels: (rows,) bool, whether it is one.
        clusters: (rows,) int64.
    """

    scores: NDArray[np.float64]
    labels: Flags
    clusters: NDArray[np.int64]

    @property
    def sizes(self) -> tuple[int, int]:
        """Training rows, and others."""
        others = int(self.labels.sum())
        return len(self.labels) - others, others

    def placements(self) -> NDArray[np.float64]:
        """Of each row, how many of the other kind it is ranked right against, as a share."""
        rows, others = self.scores[~self.labels], self.scores[self.labels]
        right = (others > rows[:, None]) + 0.5 * (others == rows[:, None])
        shares = np.empty(len(self.scores))
        shares[~self.labels] = right.mean(axis=1)
        shares[self.labels] = right.mean(axis=0)
        return shares


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
    if min(len(rows), len(others)) < FEWEST:
        return None
    # Items without an answer to show are compared by what is asked alone.
    answered = any(item.answers for item in others)
    texts = [_text(item, answered) for item in [*rows, *others]]
    groups = [item.cluster or item.id for item in [*rows, *others]]
    labels = np.repeat([False, True], [len(rows), len(others)])
    return area(name, _parts(texts, labels, groups))


def _text(item: AuditedItem, answered: bool) -> str:
    answer = item.answers[0] if item.answers and answered else ""
    asked = item.prompt if item.prompt or answered else item.answers[0]
    return f"{asked}\n{answer}"[:_CHARACTERS]


def _parts(texts: Sequence[str], labels: Flags, groups: Sequence[str]) -> list[Part]:
    """Scores of each part by a classifier of the other parts; none where there is one cluster."""
    vectorizer = HashingVectorizer(
        ngram_range=(1, 2),
        token_pattern=r"\w+",
        n_features=2**16,
        alternate_sign=False,
        norm=None,
    )
    features = TfidfTransformer(sublinear_tf=True).fit_transform(vectorizer.transform(texts))
    clusters = np.unique(groups, return_inverse=True)[1]
    fewest = min(len(set(clusters[labels])), len(set(clusters[~labels])))
    if fewest < 2:
        return []
    parts = []
    folds = StratifiedGroupKFold(min(_PARTS, fewest), shuffle=True, random_state=0)
    for trained, tested in folds.split(features, labels, clusters):
        if len(set(labels[trained])) == len(set(labels[tested])) == 2:
            classifier = LogisticRegression(class_weight="balanced", max_iter=200)
            classifier.fit(features[trained], labels[trained])
            scores = classifier.decision_function(features[tested])
            parts.append(Part(scores, labels[tested], clusters[tested]))
    return parts


def area(name: str, parts: Sequence[Part]) -> Shift | None:
    """The area under the ROC curve, with its interval; `None` of no parts.

    The interval is that of clustered data (Obuchowski 1997, Biometrics 53:567): how much each
    cluster moves the area. Rows are compared within a part only, since each part has a classifier
    of its own, whose threshold says more of the sizes of the classes that it saw than of the rows.
    """
    if not parts:
        return None
    sizes = np.array([part.sizes for part in parts])
    pairs = sizes.prod(axis=1)
    weights = pairs / pairs.sum()
    placements = [part.placements() for part in parts]
    areas = [own[part.labels].mean() for own, part in zip(placements, parts, strict=True)]
    auc = float(weights @ areas)
    moves = np.concatenate(
        [
            weight * (own - auc) / np.where(part.labels, *part.sizes[::-1])
            for weight, own, part in zip(weights, placements, parts, strict=True)
        ]
    )
    labels = np.concatenate([part.labels for part in parts])
    clusters = np.concatenate([part.clusters for part in parts])
    count = len(set(clusters))
    deviation = math.sqrt((np.bincount(clusters, moves) ** 2).sum() * count / max(count - 1, 1))
    freedom = max(min(len(set(clusters[labels])), len(set(clusters[~labels]))) - 1, 1)
    half = float(t.ppf(0.975, freedom)) * deviation
    # Where it is never wrong there is no deviation left; then chance alone says how sure that is.
    chance = math.sqrt((pairs * (sizes.sum(axis=1) + 1) / 12).sum()) / pairs.sum()
    by_clusters = t.sf((auc - 0.5) / deviation, freedom) if deviation else 0.0
    return Shift(
        other=name,
        rows=int(sizes[:, 0].sum()),
        others=int(sizes[:, 1].sum()),
        auc=auc,
        low=max(auc - half, 0.0),
        high=min(auc + half, 1.0),
        p_value=float(max(by_clusters, norm.sf((auc - 0.5) / chance))),
    )
